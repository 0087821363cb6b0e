"""Texts to weights of the vocabulary: SPLADE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import TaskNotSupportedError
from headrace.server.repository.model import Task
from headrace.server.tasks.text_encoding import resolve_prompt
from headrace.server.tasks.text_models import Timings, run_texts, text_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.embed import EmbedOptions
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.tokenization import Tokenizing


class Weights(NamedTuple):
    """The weights above 0 of one text: token ids in ascending order, and a float32 for each."""

    indices: NDArray[np.intp]
    values: NDArray[np.float32]


@dataclass(slots=True)
class SparseEmbeddings:
    """One entry per input."""

    rows: list[Weights]
    token_counts: list[int]
    timings: Timings


async def embed_sparse(
    tokenizing: Tokenizing, model: Model, inputs: Sequence[Text], options: EmbedOptions
) -> SparseEmbeddings:
    """Weigh the vocabulary for each of ``inputs`` (at least one), without ``normalize`` and ``dimensions``.

    Raises:
        TaskNotSupportedError: the model does not embed, or has another pooling than ``splade``.
        InvalidArgumentError: an unknown prompt, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    settings = text_settings(model, model.task is Task.EMBED, "an embedding model with SPLADE pooling")
    if not settings.sparse:
        raise TaskNotSupportedError(
            "Model is not an embedding model with SPLADE pooling", model=model.name, task=model.task.value
        )
    run = await run_texts(
        tokenizing, model, inputs, "embedding",
        truncate=options.truncate,
        direction=options.direction,
        prompt=resolve_prompt(settings, options.prompt_name),
        queueing=options.queueing,
    )  # fmt: skip
    rows = await tokenizing.run(_weights, run.data)
    return SparseEmbeddings(rows, run.token_counts, run.timings)


def _weights(rows: Sequence[bytes]) -> list[Weights]:
    found = []
    for data in rows:
        values = np.frombuffer(data, dtype="<f4")
        indices = np.flatnonzero(values)
        found.append(Weights(indices, values[indices]))
    return found
