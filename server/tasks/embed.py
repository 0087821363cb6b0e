"""Texts to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.batching import USUAL, Queueing
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.text_encoding import Direction, Text, resolve_prompt
from headrace.server.tasks.text_models import Timings, run_texts, text_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.text_models import TextRun
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How to embed; None means the model's or the server's default.

    Attributes:
        normalize: scale vectors to unit length; None for the model's setting.
        dimensions: keep only the first values, before scaling; in [1, the model's width].
        truncate: cut inputs that are too long; None for yes.
        direction: which end is cut.
        prompt_name: the model's prompt to put before every text; None for its default prompt.
        limit: at most this many tokens of an input, at least 1; None for as many as the model takes.
        special: let the tokenizer add its special tokens.
        queueing: how its parts wait for their batches.
    """

    normalize: bool | None = None
    dimensions: int | None = None
    truncate: bool | None = None
    direction: Direction = Direction.RIGHT
    prompt_name: str | None = None
    limit: int | None = None
    special: bool = True
    queueing: Queueing = USUAL


@dataclass(slots=True)
class Embeddings:
    """``vectors`` is float32 [inputs, dimensions], C-contiguous; ``token_counts`` has one entry per input."""

    vectors: NDArray[np.float32]
    token_counts: list[int]
    timings: Timings


async def embed(
    tokenizing: Tokenizing, model: Model, inputs: Sequence[Text], options: EmbedOptions
) -> Embeddings:
    """Embed ``inputs`` (at least one) as the parts of one request.

    Raises:
        TaskNotSupportedError: the model does not embed.
        InvalidArgumentError: impossible dimensions, an unknown prompt, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    settings = text_settings(model, model.task is Task.EMBED, "an embedding model")
    dimensions = checked_dimensions(model, options.dimensions)
    prompt = resolve_prompt(settings, options.prompt_name)
    run = await run_texts(
        tokenizing, model, inputs, "embedding",
        truncate=options.truncate, direction=options.direction, prompt=prompt,
        limit=options.limit, special=options.special, queueing=options.queueing,
    )  # fmt: skip
    normalize = settings.normalize if options.normalize is None else options.normalize
    vectors = await call_by_size(tokenizing, run.size, _vectors, run, dimensions, normalize=normalize)
    return Embeddings(vectors, run.token_counts, run.timings)


def checked_dimensions(model: Model, wanted: int | None, field: str = "dimensions") -> int | None:
    """Return how many values of a vector are kept; None for all. ``field`` is what the request calls it.

    Raises:
        InvalidArgumentError: fewer than one, or more than there are.
    """
    if wanted is None:
        return None
    if wanted < 1:
        raise InvalidArgumentError(f"`{field}` should be positive", field=field, value=str(wanted))
    if wanted > model.dimensions > 0:
        msg = (
            f"`{field}` should be smaller than the maximum embedding dimension. "
            f"Given: {wanted}, the maximum is {model.dimensions}"
        )
        raise InvalidArgumentError(msg, field=field, value=str(wanted))
    return wanted


def _vectors(run: TextRun, dimensions: int | None, *, normalize: bool) -> NDArray[np.float32]:
    return first_values(run.matrix(), dimensions, normalize=normalize)


def first_values(
    vectors: NDArray[np.float32], dimensions: int | None, *, normalize: bool
) -> NDArray[np.float32]:
    """Return the first ``dimensions`` values (None: all) of each row, of length 1 if wanted; C-contiguous."""
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    return unit_rows(cut) if normalize else cut


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row to Euclidean length 1; a row of zeros stays as it is."""
    lengths = np.sqrt(np.vecdot(vectors, vectors))
    if not lengths.all():
        lengths[lengths == 0] = 1
    result: NDArray[np.float32] = vectors / lengths[:, None]
    return result
