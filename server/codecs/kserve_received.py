"""``ModelInferRequest`` off the wire: large raw tensors stay where they came in.

The parser copies each of them into its own memory, and reading a field copies it once more, both on the event
loop. So their spans are found first, and the parser gets what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest

LARGE: Final = 1 << 16
"""Bytes of a request from which looking for its tensors costs less than copying them."""

_RAW: Final = ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED: Final = MappingProxyType({_FIXED64: 8, _FIXED32: 4})
_MORE: Final = 0x80
_LONGEST: Final = 28  # bits in front of the last byte of a number of 32


class ReceivedInfer(NamedTuple):
    """A request.

    Attributes:
        message: all of it but, where they are large, ``raw_input_contents``.
        raw: the elements of ``raw_input_contents``.
    """

    message: ModelInferRequest
    raw: Sequence[bytes | memoryview]


def receive(data: bytes) -> ReceivedInfer:
    """Parse a request.

    Raises:
        DecodeError: it is no such message.
        UnicodeDecodeError: a text in it is not UTF-8.
    """
    found = _split(data) if len(data) >= LARGE else None
    if found is None:
        message = ModelInferRequest.FromString(data)
        return ReceivedInfer(message, message.raw_input_contents)
    rest, raw = found
    return ReceivedInfer(ModelInferRequest.FromString(rest), raw)


def _split(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """Return a message without its raw tensors, and those; None where the parser has to say what is wrong."""
    view = memoryview(data)
    raw: list[memoryview] = []
    rest: list[memoryview] = []
    position, kept = 0, 0  # what lies between them belongs to the rest
    try:
        while position < len(data):
            start = position
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == _LENGTH:
                size, position = _varint(data, position)
                position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            else:
                size = 0
                position += _FIXED[kind]
            if tag >> 3 == _RAW and kind == _LENGTH:
                rest.append(view[kept:start])
                raw.append(view[position - size : position])
                kept = position
    except (IndexError, KeyError):
        return None
    if position > len(data):
        return None
    rest.append(view[kept:])
    return b"".join(rest), raw


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and where it ends.

    Raises:
        IndexError: it does not end, or has more bytes than any tag or size that is written as it should be.
    """
    value = shift = 0
    while (byte := data[position]) & _MORE:
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if shift > _LONGEST:
            raise IndexError
    return value | byte << shift, position + 1
