"""Numbers of a JSON tensor ↔ raw data."""

from __future__ import annotations

from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from headrace.runtimes.datatypes import BYTES, pack_bytes, to_array, unpack_bytes
from headrace.server.codecs.integers import below_int64
from headrace.server.codecs.kserve_json import MAX_DEPTH, wrong_type
from headrace.server.codecs.kserve_values import INTEGER_RANGES, floats_to_raw, integers_to_raw
from headrace.server.errors import InvalidArgumentError, InvalidJsonError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.server.tasks.tensors import OutputTensor


def values_to_raw(data: list[Any], count: int, datatype: str, tensor: str, model: str) -> bytes:
    """Encode the ``data`` member of an input.

    Args:
        data: values, flat or nested in any way.
        count: number of values that the shape announces.
        datatype: a KServe datatype.
        tensor: name of the input, for the messages.
        model: name of the model, for the messages.

    Raises:
        InvalidJsonError: a value has the wrong JSON type, or there are more or fewer than ``count``.
        InvalidTensorError: a number is out of range for the datatype.
    """
    values, types = _flatten(data)
    if len(values) != count:
        msg = "Unable to parse 'data': Shape does not match true shape of 'data' field"
        raise InvalidJsonError(msg, field="data", tensor=tensor, expected=str(count), actual=str(len(values)))
    if datatype == BYTES:
        return _texts(values, types)
    if datatype == "BOOL":
        if types - {bool}:
            raise wrong_type("data", "boolean")
        return bytes(values)
    if datatype not in INTEGER_RANGES:
        if types - {int, float}:
            raise wrong_type("data", "number")
        return floats_to_raw(values, datatype, tensor, model)
    # An integer beyond 64 bits is out of range, not of a wrong type.
    if types == {int} or all(type(v) is int or (type(v) is float and _is_beyond_64_bits(v)) for v in values):
        # a negative one less, because the float of the least integer stands for lower ones
        integers = [v if type(v) is int else int(v) - (v < 0) for v in values] if float in types else values
        return integers_to_raw(integers, datatype, tensor, model)
    raise wrong_type("data", "unsigned-integer" if datatype.startswith("U") else "signed-integer")


def _is_beyond_64_bits(value: float) -> bool:
    return isfinite(value) and (value >= 1 << 64 or below_int64(value))


def _flatten(data: list[Any]) -> tuple[list[Any], set[type]]:
    """Return the values without their nesting, and the types that they have."""
    values, types = data, set(map(type, data))
    for _ in range(MAX_DEPTH):
        if list not in types:
            break
        values = list(chain.from_iterable(v if type(v) is list else (v,) for v in values))
        types = set(map(type, values))
    return values, types


def _texts(values: list[Any], types: set[type]) -> bytes:
    if types - {str}:
        msg = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
        raise InvalidJsonError(msg, field="data")
    try:
        return pack_bytes(values)
    except UnicodeEncodeError as error:
        msg = f"Unable to parse JSON bytes array: {error.reason}"
        raise InvalidJsonError(msg, field="data") from None


def raw_to_json(output: OutputTensor) -> orjson.Fragment:
    """Render an output for a JSON document; see :func:`array_json`."""
    return orjson.Fragment(array_json(output))


def array_json(output: OutputTensor) -> bytes:
    """Render an output's values as one flat JSON array; floats as the double that they are exactly.

    Values that are not finite are written as ``NaN``, ``Infinity`` and ``-Infinity``.

    Raises:
        InvalidArgumentError: an element of ``BYTES`` is not UTF-8.
    """
    if output.datatype == BYTES:
        return orjson.dumps(_decode_texts(output))
    values: NDArray[Any] = to_array(output.datatype, (-1,), output.data) if output.data else np.empty(0)
    if output.datatype in ("FP16", "BF16", "FP32", "FP64"):
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            return _not_finite(values)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def _not_finite(values: NDArray[np.float64]) -> bytes:
    """Render numbers some of which JSON has no way to write: those that it has by the fast way."""
    numbers = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        value = values[index]
        numbers[index] = b"NaN" if np.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
    return b"[" + b",".join(numbers) + b"]"


def _decode_texts(output: OutputTensor) -> list[str]:
    texts: list[str] = []
    for index, element in enumerate(unpack_bytes(output.data)):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            msg = (
                f"element {index} of output '{output.name}' is not UTF-8 and cannot be sent as JSON; ask for "
                'the output with the parameter "binary_data": true'
            )
            raise InvalidArgumentError(msg, field="binary_data", value="false") from None
    return texts
