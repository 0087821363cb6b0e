"""``InferTensorContents`` to raw data: the typed form of a gRPC input."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.runtimes.datatypes import pack_bytes
from headrace.server.codecs.kserve_values import integers_to_raw
from headrace.server.errors import InvalidTensorError

if TYPE_CHECKING:
    from headrace.kserve.v2.grpc_service_pb2 import InferTensorContents


class _Field(NamedTuple):
    """A repeated field: the type that messages call it by, the datatypes it may carry, how it becomes raw."""

    shown: str
    datatypes: frozenset[str]
    encode: Callable[[InferTensorContents, str, str, str], bytes]


def _integers(field: str) -> Callable[[InferTensorContents, str, str, str], bytes]:
    def encode(contents: InferTensorContents, datatype: str, tensor: str, model: str) -> bytes:
        return integers_to_raw(getattr(contents, field), datatype, tensor, model)

    return encode


def _fixed(field: str, size: int) -> Callable[[InferTensorContents, str, str, str], bytes]:
    """Packed values of a fixed size are raw tensor data already: they end the message's wire form."""

    def encode(contents: InferTensorContents, datatype: str, tensor: str, model: str) -> bytes:
        contents.DiscardUnknownFields()  # they would come last
        return contents.SerializeToString()[-size * len(getattr(contents, field)) :]

    return encode


def _bytes(contents: InferTensorContents, datatype: str, tensor: str, model: str) -> bytes:
    return pack_bytes(contents.bytes_contents)


_FIELDS: Final = MappingProxyType(
    {
        "bool_contents": _Field("BOOL", frozenset({"BOOL"}), _fixed("bool_contents", 1)),
        "int_contents": _Field("INT32", frozenset({"INT8", "INT16", "INT32"}), _integers("int_contents")),
        "int64_contents": _Field("INT64", frozenset({"INT64"}), _integers("int64_contents")),
        "uint_contents": _Field(
            "UINT32", frozenset({"UINT8", "UINT16", "UINT32"}), _integers("uint_contents")
        ),
        "uint64_contents": _Field("UINT64", frozenset({"UINT64"}), _integers("uint64_contents")),
        "fp32_contents": _Field("FP32", frozenset({"FP32"}), _fixed("fp32_contents", 4)),
        "fp64_contents": _Field("FP64", frozenset({"FP64"}), _fixed("fp64_contents", 8)),
        "bytes_contents": _Field("BYTES", frozenset({"BYTES"}), _bytes),
    }
)


def contents_to_raw(contents: InferTensorContents, datatype: str, tensor: str, model: str) -> bytes:
    """Return the raw data of a typed input; an empty message has none.

    Args:
        contents: belongs to the caller's message; unknown fields are removed from it.
        datatype: what the input says it is.
        tensor: name of the input, for the messages.
        model: name of the model, for the messages.

    Raises:
        InvalidTensorError: the filled field is not the one of the datatype, more than one is filled, or an
            integer is out of range.
    """
    filled = contents.ListFields()
    if not filled:
        return b""
    where = f"unexpected explicit tensor data for input tensor '{tensor}' for model '{model}'"
    if len(filled) > 1:
        raise InvalidTensorError(f"{where}, binary data was already supplied.", model=model, tensor=tensor)
    field = _FIELDS[filled[0][0].name]
    if datatype not in field.datatypes:
        raise InvalidTensorError(
            f"{where} of type '{field.shown}', expected datatype '{datatype}'",
            model=model,
            tensor=tensor,
            expected=datatype,
            actual=field.shown,
        )
    return field.encode(contents, datatype, tensor, model)
