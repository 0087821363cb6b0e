"""Arrays of a batch inside one block of bytes: views of the inputs, one copy of the outputs.

A block is either the ``bytes`` inside a frame or a view of a shared region (see ``wire``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.datatypes import BYTES, datatype_of, pack_bytes, to_array
from headrace.runtimes.wire import Tensor

ALIGNMENT: Final = 64
"""Every output starts at a multiple of this many bytes: one cache line, and enough for any SIMD load."""


def read_block(tensors: Sequence[Tensor], block: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """View the tensors of ``block`` as arrays; only ``BYTES`` and misaligned tensors are copied.

    Raises:
        InvalidInputError: a tensor's bytes do not fit its datatype and shape.
    """
    view = memoryview(block)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        try:
            array = to_array(tensor.datatype, tensor.shape, view[tensor.offset : tensor.offset + tensor.size])
        except KeyError:
            msg = f"input '{tensor.name}' has unknown datatype '{tensor.datatype}'"
            raise InvalidInputError(msg) from None
        except ValueError as error:
            msg = f"input '{tensor.name}' ({tensor.datatype} {list(tensor.shape)}): {error}"
            raise InvalidInputError(msg) from error
        # Native kernels may use aligned loads, and a block packed by hand may start anywhere.
        arrays[tensor.name] = array if array.flags.aligned else array.copy()
    return arrays


def write_block(
    arrays: Mapping[str, NDArray[Any]], allocate: Callable[[int], memoryview]
) -> tuple[tuple[Tensor, ...], int]:
    """Copy ``arrays`` into the block that ``allocate`` returns for the size they need together.

    Returns:
        Where each array lies in the block, and the block's size in bytes.

    Raises:
        ValueError: an array's dtype has no KServe name.
    """
    tensors: list[Tensor] = []
    texts: dict[str, bytes] = {}
    end = 0
    for name, array in arrays.items():
        datatype = datatype_of(array)
        row_ends: tuple[int, ...] | None = None
        size = array.nbytes
        if datatype == BYTES:
            texts[name], row_ends = _pack_rows(array)
            size = len(texts[name])
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        tensors.append(Tensor(name, datatype, array.shape, offset, size, row_ends))
        end = offset + size
    block = allocate(end)
    for tensor in tensors:
        part = block[tensor.offset : tensor.offset + tensor.size]
        if tensor.datatype == BYTES:
            part[:] = texts[tensor.name]
        elif tensor.size:
            array = arrays[tensor.name]
            little = array.dtype.newbyteorder("<")
            np.copyto(np.frombuffer(part, dtype=little).reshape(array.shape), array)
    return tuple(tensors), end


def _pack_rows(array: NDArray[Any]) -> tuple[bytes, tuple[int, ...]]:
    """Serialize a ``BYTES`` array and say where each row (index of the first dimension) ends."""
    if array.ndim <= 1:
        rows = [pack_bytes([element]) for element in array.reshape(-1).tolist()]
    else:
        rows = [pack_bytes(row.reshape(-1).tolist()) for row in array]
    ends: list[int] = []
    position = 0
    for row in rows:
        position += len(row)
        ends.append(position)
    return b"".join(rows), tuple(ends)
