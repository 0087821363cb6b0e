"""A batch: parts laid one after another for the worker, and its outputs cut apart again.

Joining parts along the first dimension is nothing but putting their raw bytes side by side, and splitting is
slicing; no array library is involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

from headrace.runtimes.datatypes import BYTES, ITEM_SIZES
from headrace.runtimes.wire import Tensor
from headrace.server.errors import ExecutionFailedError
from headrace.server.scheduling.work import Part, PartOutput, PartResult

ALIGNMENT: Final = 64  # bytes; cache line and widest vector register
RAGGED_OUTPUTS: Final = frozenset({"token_embeddings"})
"""Outputs whose first dimension counts the tokens of all parts, not their rows."""


class Batch:
    """Parts that run together.

    Attributes:
        reason: why the batch was closed: full, preferred, delay, shape or idle.
        lone: nothing else waits or runs, so the batch may use all threads.
        beside: other instances run too.
        sent_ns: when it went to the worker, monotonic.
    """

    __slots__ = ("beside", "id", "lone", "parts", "reason", "rows", "sent_ns", "tokens")

    def __init__(self, parts: Sequence[Part], reason: str, *, lone: bool, beside: bool = False) -> None:
        """Group ``parts``, which must have equal keys."""
        self.id = 0
        self.beside = beside
        self.parts = parts
        self.reason = reason
        self.lone = lone
        self.rows = sum(part.rows for part in parts)
        self.tokens = sum(part.tokens for part in parts)
        self.sent_ns = 0

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for any of the parts."""
        return all(part.abandoned for part in self.parts)

    @property
    def shared(self) -> bool:
        """Whether the parts are those of more than one request."""
        return any(part.pending is not self.parts[0].pending for part in self.parts)


def layout(parts: Sequence[Part]) -> tuple[tuple[Tensor, ...], int]:
    """Plan where each joined input lies in the batch's block; returns the tensors and its size in bytes."""
    tensors: list[Tensor] = []
    position = 0
    for column, first in enumerate(parts[0].inputs):
        if len(parts) == 1:
            shape, size = first.shape, len(first.data)
        else:
            shape = (sum(part.inputs[column].shape[0] for part in parts), *first.shape[1:])
            size = sum(len(part.inputs[column].data) for part in parts)
        position = -(-position // ALIGNMENT) * ALIGNMENT
        tensors.append(Tensor(first.name, first.datatype, shape, position, size))
        position += size
    return tuple(tensors), position


def chunks(parts: Sequence[Part], tensors: Sequence[Tensor]) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield (offset, bytes) for every piece of the block that :func:`layout` planned."""
    for column, tensor in enumerate(tensors):
        position = tensor.offset
        for part in parts:
            data = part.inputs[column].data
            yield position, data
            position += len(data)


def split(batch: Batch, tensors: Sequence[Tensor], block: memoryview) -> list[PartResult]:
    """Cut a batch's outputs into each part's own copy.

    Raises:
        ExecutionFailedError: an output does not keep the batch dimension.
    """
    results: list[PartResult] = [{} for _ in batch.parts]
    for tensor in tensors:
        data = block[tensor.offset : tensor.offset + tensor.size]
        if len(batch.parts) == 1:
            results[0][tensor.name] = PartOutput(tensor.datatype, tensor.shape, bytes(data))
            continue
        ragged = tensor.name in RAGGED_OUTPUTS and batch.tokens > 0
        counts = [part.tokens if ragged else part.rows for part in batch.parts]
        if not tensor.shape or tensor.shape[0] != sum(counts):
            msg = (
                f"output '{tensor.name}' has shape {list(tensor.shape)} for {sum(counts)} rows: the "
                "model does not keep the batch dimension; set max_batch_size to 0 or dynamic batching off"
            )
            raise ExecutionFailedError(msg)
        ends = _row_ends(tensor)
        row = start = 0
        for result, count in zip(results, counts, strict=True):
            row += count
            end = ends[row - 1] if isinstance(ends, tuple) else row * ends
            shape = (count, *tensor.shape[1:])
            result[tensor.name] = PartOutput(tensor.datatype, shape, bytes(data[start:end]))
            start = end
    return results


def _row_ends(tensor: Tensor) -> int | tuple[int, ...]:
    """Bytes per row, or the end offset of each row where rows differ in size."""
    if tensor.datatype == BYTES:
        return tensor.row_ends or ()
    return ITEM_SIZES[tensor.datatype] * prod(tensor.shape[1:])
