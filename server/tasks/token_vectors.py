"""Texts to one vector for each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.repository.model import Task
from headrace.server.tasks.embed import first_values
from headrace.server.tasks.text_encoding import resolve_prompt
from headrace.server.tasks.text_models import Timings, check_token_vectors, run_texts, text_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.embed import EmbedOptions
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(slots=True)
class TokenVectors:
    """``vectors`` has float32 [tokens, width] for each input, special tokens included, not normalised."""

    vectors: list[NDArray[np.float32]]
    token_counts: list[int]
    timings: Timings


async def embed_tokens(
    tokenizing: Tokenizing, model: Model, inputs: Sequence[Text], options: EmbedOptions
) -> TokenVectors:
    """Embed the tokens of ``inputs`` (at least one); ``normalize`` and ``dimensions`` do not apply.

    Raises:
        TaskNotSupportedError: the model does not embed, or pools inside its graph.
        InvalidArgumentError: an unknown prompt, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    settings = text_settings(model, model.task is Task.EMBED, "an embedding model")
    check_token_vectors(model, "an embedding model of tokens")
    run = await run_texts(
        tokenizing, model, inputs, "token_embeddings",
        truncate=options.truncate,
        direction=options.direction,
        prompt=resolve_prompt(settings, options.prompt_name),
        limit=options.limit,
        special=options.special,
        queueing=options.queueing,
    )  # fmt: skip
    counts = run.token_counts
    vectors = [
        np.frombuffer(data, dtype="<f4").reshape(count, -1)
        for data, count in zip(run.data, counts, strict=True)
    ]
    return TokenVectors(vectors, counts, run.timings)


def unit_tokens(
    rows: Sequence[NDArray[np.float32]], dimensions: int | None, *, normalize: bool
) -> list[NDArray[np.float32]]:
    """Return the first ``dimensions`` values (None: all) of each token's vector, of length 1 if wanted."""
    return [first_values(row, dimensions, normalize=normalize) for row in rows]
