"""How well pairs of texts fit together, one number for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InputEmptyError, InvalidArgumentError, TaskNotSupportedError
from headrace.server.repository.model import Task
from headrace.server.tasks.embed import unit_rows
from headrace.server.tasks.rerank import is_cross_encoder
from headrace.server.tasks.text_encoding import Direction
from headrace.server.tasks.text_models import Timings, run_texts, sigmoid, text_settings
from headrace.server.tasks.text_tokens import first_tokens

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How to score.

    Attributes:
        raw_scores: give a cross-encoder's logits instead of scores in [0, 1].
        truncate: cut what is too long; None for yes.
        direction: which end is cut.
        limit: at most this many tokens of what the model reads at once, at least 1; None for as many as it
            takes.
        first_limit: at most this many tokens of a first text itself, without special tokens; None for all.
        second_limit: the same of a second text.
    """

    raw_scores: bool = False
    truncate: bool | None = None
    direction: Direction = Direction.RIGHT
    limit: int | None = None
    first_limit: int | None = None
    second_limit: int | None = None


@dataclass(slots=True)
class Scores:
    """``values`` is float32 [pairs]; ``token_counts`` has what the model read, in no particular grouping."""

    values: NDArray[np.float32]
    token_counts: list[int]
    timings: Timings


async def score(
    tokenizing: Tokenizing,
    model: Model,
    firsts: Sequence[str],
    seconds: Sequence[str],
    options: ScoreOptions,
) -> Scores:
    """Score each first text with its second one; a single first text goes with every second one.

    A cross-encoder reads both together: the sigmoid of its logit. An embedding model gives the cosine of the
    two vectors, in [-1, 1]; each text is embedded once, with the model's default prompt.

    Raises:
        TaskNotSupportedError: the model gives no single number for a pair.
        InputEmptyError: there are no texts, or (for an embedding model) one is empty.
        InvalidArgumentError: the numbers of texts do not fit, or an input cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    if not firsts or not seconds:
        raise InputEmptyError("At least one text pair is needed to score", field="inputs")
    if len(firsts) not in (1, len(seconds)):
        raise InvalidArgumentError(
            f"Input lengths must be either 1:1, 1:N or N:N, got {len(firsts)}:{len(seconds)}", field="inputs"
        )
    cross = is_cross_encoder(model)
    settings = text_settings(model, cross or model.task is Task.EMBED, "a model that scores pairs of texts")
    if settings.sparse:
        raise TaskNotSupportedError(
            f"model '{model.name}' weighs words, its vectors are not compared here", model=model.name
        )
    firsts = await first_tokens(tokenizing, settings, firsts, options.first_limit)
    seconds = await first_tokens(tokenizing, settings, seconds, options.second_limit)
    if cross:
        paired = list(firsts) * len(seconds) if len(firsts) == 1 else firsts
        pairs = list(zip(paired, seconds, strict=True))
        run = await run_texts(
            tokenizing, model, pairs, "logits",
            truncate=options.truncate, direction=options.direction, limit=options.limit,
        )  # fmt: skip
        logits = run.matrix()[:, 0]
        return Scores(logits if options.raw_scores else sigmoid(logits), run.token_counts, run.timings)
    run = await run_texts(
        tokenizing, model, [*firsts, *seconds], "embedding",
        truncate=options.truncate, direction=options.direction, limit=options.limit,
        prompt=settings.prompts.get(settings.default_prompt, ""),
    )  # fmt: skip
    vectors = unit_rows(run.matrix())
    values = (vectors[: len(firsts)] * vectors[len(firsts) :]).sum(axis=1)
    return Scores(values, run.token_counts, run.timings)
