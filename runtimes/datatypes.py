"""Tensor datatypes by their KServe v2 names, and their numpy equivalents.

Source of the names: the Open Inference Protocol's tensor datatype table. ``BYTES`` has no fixed element
size: on the wire each element is a little-endian uint32 length followed by that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BYTES: Final = "BYTES"

NUMPY_TYPES: Final = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype(np.uint16),
        "UINT32": np.dtype(np.uint32),
        "UINT64": np.dtype(np.uint64),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype(np.int16),
        "INT32": np.dtype(np.int32),
        "INT64": np.dtype(np.int64),
        "FP16": np.dtype(np.float16),
        "FP32": np.dtype(np.float32),
        "FP64": np.dtype(np.float64),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        BYTES: np.dtype(object),
    }
)
_NAMES: Final = MappingProxyType({dtype: name for name, dtype in NUMPY_TYPES.items()})

ITEM_SIZES: Final = MappingProxyType(
    {name: 0 if name == BYTES else dtype.itemsize for name, dtype in NUMPY_TYPES.items()}
)
"""Bytes per element; 0 for ``BYTES``, whose elements have no fixed size."""


def datatype_of(array: NDArray[Any]) -> str:
    """Return the KServe name of ``array``'s dtype.

    Raises:
        ValueError: the dtype has no KServe name.
    """
    if array.dtype.kind in "SU":
        return BYTES
    try:
        return _NAMES[array.dtype.newbyteorder("=")]
    except KeyError:
        msg = f"numpy dtype {array.dtype} has no KServe datatype; expected one of {', '.join(NUMPY_TYPES)}"
        raise ValueError(msg) from None


def pack_bytes(elements: Iterable[bytes | str]) -> bytes:
    """Serialize ``BYTES`` elements: each as little-endian uint32 length, then the bytes (text as UTF-8)."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else bytes(element)
        parts.append(struct.pack("<I", len(raw)))
        parts.append(raw)
    return b"".join(parts)


def unpack_bytes(data: bytes | memoryview) -> list[bytes]:
    """Split serialized ``BYTES`` data into its elements.

    Raises:
        ValueError: the data ends inside a length or inside an element.
    """
    view = memoryview(data)
    elements: list[bytes] = []
    position, end = 0, len(view)
    while position < end:
        if end - position < 4:
            msg = (
                "incomplete string length indicator, expecting 4 bytes but only "
                f"{end - position} bytes available"
            )
            raise ValueError(msg)
        length = int.from_bytes(view[position : position + 4], "little")
        position += 4
        if end - position < length:
            msg = f"expecting string of length {length} but only {end - position} bytes available"
            raise ValueError(msg)
        elements.append(bytes(view[position : position + length]))
        position += length
    return elements


def to_array(datatype: str, shape: Sequence[int], data: bytes | memoryview) -> NDArray[Any]:
    """View raw little-endian row-major ``data`` as an array; only ``BYTES`` is copied.

    Raises:
        ValueError: the data does not fit the shape.
    """
    if datatype == BYTES:
        elements = unpack_bytes(data)
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(shape)
    return np.frombuffer(data, dtype=NUMPY_TYPES[datatype]).reshape(shape)
