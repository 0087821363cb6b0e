"""Tensors to tensors for classical models: inference on any number of rows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final

from headrace.runtimes.datatypes import BYTES, ITEM_SIZES
from headrace.server.scheduling.work import PartInput, PartOutput
from headrace.server.tasks.infer import infer
from headrace.server.tasks.infer_bytes import check_elements
from headrace.server.tasks.infer_split import join_rows, row_counts, split_rows
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.tensors import InferRequest, InferResponse, InputTensor, OutputTensor

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.tokenization import Tokenizing

MAX_PARTS: Final = 256
"""Batches of one request that are queued at a time: a larger request goes in turns and leaves room."""


async def predict(tokenizing: Tokenizing, model: Model, request: InferRequest) -> InferResponse:
    """Run ``request``; more rows than the model takes at once are run as several batches and joined again.

    Args:
        tokenizing: threads for what is too long for the event loop.
        model: the version that answers.
        request: tensors, not yet checked.

    Raises:
        HeadraceError: what ``infer`` raises; after the first failure the other batches are given up.
    """
    rows = _rows(model, request)
    if rows <= model.max_batch_size:
        return await infer(tokenizing, model, request)
    size = sum(len(tensor.data) for tensor in request.inputs if tensor.datatype == BYTES)
    counts = row_counts(rows, model.max_batch_size)
    pieces = await call_by_size(tokenizing, size, _split, model, request, counts)
    responses: list[InferResponse] = []
    for start in range(0, len(pieces), MAX_PARTS):
        turn = pieces[start : start + MAX_PARTS]
        runs = [asyncio.ensure_future(infer(tokenizing, model, piece)) for piece in turn]
        try:
            responses += await asyncio.gather(*runs)
        finally:
            for run in runs:
                run.cancel()
    return _join(responses)


def _rows(model: Model, request: InferRequest) -> int:
    """Return the batch rows that all inputs agree on; 0 where they do not and ``infer`` has to judge."""
    counts = {tensor.shape[0] if tensor.shape else 0 for tensor in request.inputs}
    whole = all(
        tensor.datatype == BYTES
        or len(tensor.data) == prod(tensor.shape) * ITEM_SIZES.get(tensor.datatype, 0)
        for tensor in request.inputs
    )
    return counts.pop() if model.batching and len(counts) == 1 and whole else 0


def _split(model: Model, request: InferRequest, counts: list[int]) -> list[InferRequest]:
    for tensor in request.inputs:
        if tensor.datatype == BYTES:
            check_elements(tensor, prod(tensor.shape), model.name, "")
    inputs = [
        PartInput(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data) for tensor in request.inputs
    ]
    return [
        replace(request, inputs=[InputTensor(*tensor) for tensor in part])
        for part in split_rows(inputs, counts)
    ]


def _join(responses: list[InferResponse]) -> InferResponse:
    joined = join_rows(
        [
            {
                output.name: PartOutput(output.datatype, tuple(output.shape), output.data)
                for output in response.outputs
            }
            for response in responses
        ]
    )
    return replace(responses[0], outputs=[OutputTensor(name, *output) for name, output in joined.items()])
