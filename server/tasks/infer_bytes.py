"""Elements of raw ``BYTES`` data: a little-endian uint32 length before each element's bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from headrace.server.errors import InvalidTensorError

if TYPE_CHECKING:
    from headrace.server.tasks.tensors import InputTensor

_read_length: Final = struct.Struct("<I").unpack_from
_LENGTH_SIZE: Final = 4


def check_elements(tensor: InputTensor, expected: int, model: str, prefix: str) -> None:
    """Check that ``tensor`` has exactly ``expected`` whole elements.

    Args:
        tensor: a ``BYTES`` input.
        expected: number of elements that its shape announces.
        model: model name, for the messages.
        prefix: text in front of the messages that name the request.

    Raises:
        InvalidTensorError: too few or too many elements, or the data ends inside one.
    """
    data, end = tensor.data, len(tensor.data)
    where = f"for inference input '{tensor.name}' for model '{model}'"
    position = count = 0
    while position < end:
        if count == expected:
            msg = f"{prefix}unexpected number of string elements {count + 1} {where}, expecting {expected}"
            raise InvalidTensorError(msg, model=model, tensor=tensor.name)
        if end - position < _LENGTH_SIZE:
            msg = (
                f"{prefix}incomplete string length indicator {where}, expecting 4 bytes but only "
                f"{end - position} bytes available. Please make sure the string length indicator is in one "
                "buffer."
            )
            raise InvalidTensorError(msg, model=model, tensor=tensor.name)
        length: int = _read_length(data, position)[0]
        position += _LENGTH_SIZE
        if end - position < length:
            msg = (
                f"incomplete string data for inference input '{tensor.name}', expecting string of length "
                f"{length} but only {end - position} bytes available"
            )
            raise InvalidTensorError(msg, model=model, tensor=tensor.name)
        position += length
        count += 1
    if count != expected:
        msg = f"{prefix}expected {expected} string elements {where}, got {count}"
        raise InvalidTensorError(msg, model=model, tensor=tensor.name)


def cut_elements(data: bytes | memoryview, counts: Sequence[int]) -> list[memoryview]:
    """Cut checked ``BYTES`` data into runs of ``counts`` elements each."""
    view = memoryview(data)
    pieces: list[memoryview] = []
    position = 0
    for count in counts:
        start = position
        for _ in range(count):
            position += _LENGTH_SIZE + _read_length(view, position)[0]
        pieces.append(view[start:position])
    return pieces
