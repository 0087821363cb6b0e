"""Run a batch that is larger than the model takes as several smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from headrace.runtimes.datatypes import BYTES
from headrace.server.errors import ExecutionFailedError
from headrace.server.scheduling.work import PartInput, PartOutput, PartResult
from headrace.server.tasks.infer_bytes import cut_elements


def row_counts(rows: int, limit: int) -> list[int]:
    """Return the sizes of the smaller batches: as many full ones as possible, the rest last."""
    return [min(limit, rows - start) for start in range(0, rows, limit)]


def split_rows(inputs: Sequence[PartInput], counts: Sequence[int]) -> list[list[PartInput]]:
    """Cut every input (batch dimension first, checked) into runs of ``counts`` rows; nothing is copied."""
    cut = [_cut(tensor, counts) for tensor in inputs]
    return [list(part) for part in zip(*cut, strict=True)]


def join_rows(results: Sequence[PartResult]) -> PartResult:
    """Put the outputs of the smaller batches together again.

    Raises:
        ExecutionFailedError: an output's other dimensions differ from batch to batch.
    """
    joined: PartResult = {}
    for name, (datatype, shape, _) in results[0].items():
        pieces = [result[name] for result in results]
        if any(piece.shape[1:] != shape[1:] for piece in pieces):
            shapes = ", ".join(str(list(piece.shape)) for piece in pieces)
            msg = f"output '{name}' of the parts of a split batch cannot be joined, their shapes are {shapes}"
            raise ExecutionFailedError(msg, tensor=name)
        rows = sum(piece.shape[0] for piece in pieces)
        joined[name] = PartOutput(datatype, (rows, *shape[1:]), b"".join(piece.data for piece in pieces))
    return joined


def _cut(tensor: PartInput, counts: Sequence[int]) -> list[PartInput]:
    name, datatype, shape, data = tensor
    if datatype == BYTES:
        row = prod(shape[1:])
        pieces = cut_elements(data, [count * row for count in counts])
    else:
        view, stride, pieces, start = memoryview(data), len(data) // shape[0], [], 0
        for count in counts:
            pieces.append(view[start : start + count * stride])
            start += count * stride
    return [
        PartInput(name, datatype, (count, *shape[1:]), piece)
        for count, piece in zip(counts, pieces, strict=True)
    ]
