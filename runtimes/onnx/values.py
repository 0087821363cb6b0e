"""Arrays to and from ONNX Runtime where plain numpy is not enough: text and bfloat16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.base import InvalidInputError

_BFLOAT16: Final = 16
"""``TensorProto.DataType.BFLOAT16``."""
_BF16 = np.dtype(ml_dtypes.bfloat16)


def as_text(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return a ``BYTES`` array as the Python strings that ONNX Runtime takes.

    Given bytes objects it would take their ``repr``, and fixed-width numpy strings lose their ends.

    Raises:
        InvalidInputError: an element is not UTF-8.
    """
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [
            element if isinstance(element, str) else bytes(element).decode()
            for element in array.ravel().tolist()
        ]
    except UnicodeDecodeError as error:
        msg = f"input '{name}' has an element that is not UTF-8 text: {error}"
        raise InvalidInputError(msg) from error
    return texts.reshape(array.shape)


def row_major(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``array`` in row-major order, itself if it is; unlike ``ascontiguousarray`` it keeps rank 0."""
    return array if array.flags.c_contiguous else array.copy()


def run_with_bfloat16(
    session: ort.InferenceSession,
    feed: Mapping[str, NDArray[Any]],
    names: list[str],
    options: ort.RunOptions,
) -> list[NDArray[Any]]:
    """Run a graph that has a bfloat16 input or output, which numpy cannot carry; arrays are row-major."""
    # The values point into the arrays of ``feed``, which live as long as this call.
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
        if array.dtype == _BF16
        else ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in feed.items()
    }
    return [_to_numpy(value) for value in session.run_with_ort_values(names, values, options)]


def _to_numpy(value: ort.OrtValue) -> NDArray[Any]:
    if value.element_type() != _BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64)) * _BF16.itemsize
    # Copied, because the memory is the value's own and goes with it.
    content = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(content, dtype=_BF16).reshape(shape)
