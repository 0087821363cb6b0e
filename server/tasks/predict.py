"""Tensors to tensors for classical models: inference on any number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.tasks.infer import infer

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.tensors import InferRequest, InferResponse
    from headrace.server.tasks.tokenization import Tokenizing


async def predict(tokenizing: Tokenizing, model: Model, request: InferRequest) -> InferResponse:
    """Run ``request``; more rows than the model takes at once are run as several batches and joined again.

    Args:
        tokenizing: threads for what is too long for the event loop.
        model: the version that answers.
        request: tensors, not yet checked.

    Raises:
        HeadraceError: what ``infer`` raises; after the first failure the other batches are given up.
    """
    return await infer(tokenizing, model, request, split=True)
