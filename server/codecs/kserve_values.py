"""Python numbers to raw tensor data, with every integer checked against its datatype: nothing ever wraps."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import ml_dtypes
import numpy as np

from headrace.runtimes.datatypes import NUMPY_TYPES
from headrace.server.errors import InvalidTensorError

INTEGER_RANGES: Final = MappingProxyType(
    {
        name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        for name, dtype in NUMPY_TYPES.items()
        if dtype.kind in "iu"
    }
)
"""Least and greatest value of each integer datatype."""


def integers_to_raw(values: Sequence[int], datatype: str, tensor: str, model: str) -> bytes:
    """Encode integers as raw ``datatype`` data.

    Args:
        values: integers; may be a repeated protobuf field.
        datatype: one of ``INTEGER_RANGES``.
        tensor: name of the input, for the message.
        model: name of the model, for the message.

    Raises:
        InvalidTensorError: a value is outside the datatype's range.
    """
    try:
        return np.array(values, dtype=NUMPY_TYPES[datatype]).tobytes()
    except OverflowError:
        low, high = INTEGER_RANGES[datatype]
        index, value = next((index, v) for index, v in enumerate(values) if not low <= v <= high)
        raise _out_of_range(value, index, datatype, f"{low} to {high}", tensor, model) from None


def floats_to_raw(values: Sequence[float], datatype: str, tensor: str, model: str) -> bytes:
    """Encode numbers as raw ``datatype`` data, rounded to the nearest value; arguments as above.

    Raises:
        InvalidTensorError: a finite value is too large for the datatype.
    """
    dtype = NUMPY_TYPES[datatype]
    exact = np.array(values, dtype=np.float64)
    if datatype == "FP64":
        return exact.tobytes()
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    wrong = np.isinf(rounded) & np.isfinite(exact)
    if wrong.any():
        index = int(wrong.argmax())
        high = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        raise _out_of_range(values[index], index, datatype, f"{-high:g} to {high:g}", tensor, model)
    return rounded.tobytes()


def _out_of_range(
    value: float, index: int, datatype: str, allowed: str, tensor: str, model: str
) -> InvalidTensorError:
    return InvalidTensorError(
        f"value {value} at index {index} of input '{tensor}' for model '{model}' is out of range for "
        f"datatype {datatype}, expected {allowed}",
        model=model,
        tensor=tensor,
        expected=f"{datatype} {allowed}",
        actual=str(value),
    )
