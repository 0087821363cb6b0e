"""The batcher of a model, for tasks that run tensors through one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.errors import UnsupportedError

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.runner import BatchRunner


def batcher_of(model: Model) -> BatchRunner:
    """Return the batcher of ``model``.

    Raises:
        UnsupportedError: the model generates text, which takes other requests.
    """
    if model.batcher is None:
        raise UnsupportedError(
            f"model '{model.name}' generates text and takes no tensors: use /v1/chat/completions, "
            "/v1/completions or headrace.v1.GenerationService",
            model=model.name,
            task=model.task.value,
        )
    return model.batcher
