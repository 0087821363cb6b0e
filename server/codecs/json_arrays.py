"""One JSON array to one tensor: type, range and shape are checked, nothing wraps, rounds or is guessed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.runtimes.datatypes import BYTES, NUMPY_TYPES, pack_bytes
from headrace.server.errors import InputEmptyError, InvalidTensorError
from headrace.server.tasks.tensors import InputTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.server.repository.model import ModelTensor

_FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
_EXACT: Final = 2**53
"""Integers up to this size are the same as float64."""


def to_tensor(spec: ModelTensor, value: Any, *, batching: bool) -> InputTensor:
    """Convert a number, text or nested array to the input ``spec``.

    The array has the input's shape with or without the batch dimension; a flat array is cut into rows where
    the size of a row is known.

    Raises:
        InputEmptyError: the array has no elements.
        InvalidTensorError: ragged, of another type, out of the datatype's range, or of another shape.
    """
    array = _texts(spec, value) if spec.datatype == BYTES else _numbers(spec, value)
    if array.size == 0:
        raise InputEmptyError("`inputs` cannot be empty", field="inputs", tensor=spec.name)
    array = _shaped(spec, array, batching=batching)
    data = pack_bytes(array.ravel().tolist()) if spec.datatype == BYTES else array.tobytes()
    return InputTensor(spec.name, spec.datatype, array.shape, data)


def _texts(spec: ModelTensor, value: Any) -> NDArray[Any]:
    array = np.array(value, dtype=object)
    for element in array.ravel().tolist():
        if isinstance(element, list):
            raise _ragged(spec)
        if not isinstance(element, str):
            raise _unfit(spec, "strings", element)
    return array


def _numbers(spec: ModelTensor, value: Any) -> NDArray[Any]:
    try:
        array = np.array(value)
    except ValueError:
        raise _ragged(spec) from None
    if array.size == 0:
        return array
    if array.dtype.kind == "O":
        array = _objects(spec, array)
    if array.dtype.kind not in "biuf":
        raise _unfit(spec, "numbers", array.ravel()[0].item())
    if spec.datatype in _FLOATS:
        return _to_float(spec, array)
    if spec.datatype == "BOOL":
        neither = array if array.dtype.kind == "f" else array[~np.isin(array, (0, 1))]
        if neither.size:
            raise _unfit(spec, "booleans", neither.ravel()[0].item())
        return array.astype(np.bool_)
    return _to_integer(spec, array, value)


def _objects(spec: ModelTensor, array: NDArray[Any]) -> NDArray[Any]:
    """Handle what numpy has no type for: null among numbers (missing, so NaN) and integers beyond 64 bits."""
    for element in array.ravel().tolist():
        missing = element is None and spec.datatype in _FLOATS
        if not missing and not isinstance(element, (int, float)):
            raise _unfit(spec, "numbers", element)
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise InvalidTensorError(_out_of_range(spec), tensor=spec.name) from None


def _to_float(spec: ModelTensor, array: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        result = array.astype(NUMPY_TYPES[spec.datatype])
    if np.isinf(result.astype(np.float64)).any():  # JSON has no infinities
        raise InvalidTensorError(_out_of_range(spec), tensor=spec.name)
    return result


def _to_integer(spec: ModelTensor, array: NDArray[Any], value: Any) -> NDArray[Any]:
    dtype = NUMPY_TYPES[spec.datatype]
    if array.dtype.kind == "f":
        exact = np.array(value, dtype=object)
        if all(isinstance(element, int) for element in exact.ravel().tolist()):
            array = exact  # integers on both sides of 2**63: numpy joins them as float64
        elif not (np.abs(array) <= _EXACT).all() or (array != np.trunc(array)).any():
            odd = array[(np.abs(array) > _EXACT) | (array != np.trunc(array))]
            raise _unfit(spec, "integers", odd.ravel()[0].item())
    limits = np.iinfo(dtype)
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        raise InvalidTensorError(_out_of_range(spec), tensor=spec.name)
    return array.astype(dtype)


def _shaped(spec: ModelTensor, array: NDArray[Any], *, batching: bool) -> NDArray[Any]:
    dims = spec.dims
    if not batching:
        if _fits(array.shape, dims):
            return array
        if (
            array.ndim <= 1
            and dims.count(-1) <= 1
            and _divides(prod(size for size in dims if size != -1), array)
        ):
            fixed = prod(size for size in dims if size != -1)
            if -1 in dims or fixed == array.size:
                return array.reshape(dims)
        raise _misshapen(spec, array, dims)
    if _fits(array.shape[1:], dims) and array.ndim:
        return array
    if dims and _fits(array.shape, dims):
        return array[None]
    if array.ndim <= 1 and -1 not in dims:
        row = prod(dims)
        if not _divides(row, array):
            raise InvalidTensorError(
                f"input '{spec.name}': {array.size} values do not make rows of {row}; expected shape "
                f"{_text((-1, *dims))}, whole rows of {row} values",
                tensor=spec.name,
                expected=f"{spec.datatype}{_text((-1, *dims))}",
                actual=f"{spec.datatype}{_text(array.shape)}",
            )
        return array.reshape(-1, *dims)
    raise _misshapen(spec, array, (-1, *dims))


def _divides(row: int, array: NDArray[Any]) -> bool:
    return row > 0 and array.size % row == 0


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(want in (-1, size) for want, size in zip(dims, shape, strict=True))


def _misshapen(spec: ModelTensor, array: NDArray[Any], expected: Sequence[int]) -> InvalidTensorError:
    return InvalidTensorError(
        f"input '{spec.name}': shape {_text(array.shape)} does not fit, expected {_text(expected)}",
        tensor=spec.name,
        expected=f"{spec.datatype}{_text(expected)}",
        actual=f"{spec.datatype}{_text(array.shape)}",
    )


def _ragged(spec: ModelTensor) -> InvalidTensorError:
    return InvalidTensorError(
        f"input '{spec.name}': not a regular array, its rows differ in length or depth", tensor=spec.name
    )


def _unfit(spec: ModelTensor, expected: str, element: Any) -> InvalidTensorError:
    shown = repr(element) if isinstance(element, (bool, int, float, str)) else type(element).__name__
    shown = {"dict": "an object", "NoneType": "null", "list": "an array"}.get(shown, shown)
    return InvalidTensorError(
        f"input '{spec.name}': expected {expected} for {spec.datatype}, got {shown[:80]}", tensor=spec.name
    )


def _out_of_range(spec: ModelTensor) -> str:
    return f"input '{spec.name}': a value is out of the range of {spec.datatype}"


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
