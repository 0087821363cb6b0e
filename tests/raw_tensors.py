"""Arrays as the bytes that tensors travel in."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from headrace.runtimes.datatypes import BYTES, datatype_of, pack_bytes


def to_raw(array: NDArray[Any]) -> tuple[str, bytes]:
    """Return the datatype and the raw row-major content of an array of this machine's byte order."""
    datatype = datatype_of(array)
    return datatype, pack_bytes(array.ravel().tolist()) if datatype == BYTES else array.tobytes()
