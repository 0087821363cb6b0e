"""Ordering texts by their relevance to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.embed import unit_rows
from headrace.server.tasks.text_encoding import Direction
from headrace.server.tasks.text_models import TextRun, Timings, run_texts, sigmoid, text_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.server.repository.model import Model
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """How to rank.

    Attributes:
        raw_scores: give the model's own scores instead of scores in [0, 1].
        top_n: only this many best texts, at least 1; None for all.
        truncate: cut what is too long; None for yes.
        direction: which end is cut.
    """

    raw_scores: bool = False
    top_n: int | None = None
    truncate: bool | None = None
    direction: Direction = Direction.RIGHT


@dataclass(slots=True)
class Ranking:
    """Texts by descending relevance: ``order`` their positions in the request, ``scores`` float32, alike."""

    order: list[int]
    scores: NDArray[np.float32]
    token_counts: list[int]
    timings: Timings


async def rerank(
    tokenizing: Tokenizing, model: Model, query: str, texts: Sequence[str], options: RerankOptions
) -> Ranking:
    """Score every text against ``query`` and sort; equal scores keep the order of the texts.

    A cross-encoder (task ``rerank``, or ``classify`` with a single label) reads query and text together; its
    score is the sigmoid of its logit, with ``raw_scores`` the logit. An embedding model ranks by late
    interaction, see :func:`late_interaction`; its raw score in [-1, 1] is cut at 0 unless ``raw_scores``.
    Either way everything runs as the parts of one request; late interaction encodes the query once.

    Raises:
        TaskNotSupportedError: the model cannot rank.
        InputEmptyError: the query is empty, or there are no texts. An empty text is scored like any other.
        InvalidArgumentError: ``top_n`` below 1, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    one_label = model.text is not None and len(model.text.labels) == 1
    cross = model.task is Task.RERANK or (model.task is Task.CLASSIFY and one_label)
    settings = text_settings(model, cross or model.task is Task.EMBED, "a re-ranker model")
    if not query:
        raise InputEmptyError("`query` cannot be empty", field="query")
    if not texts:
        raise InputEmptyError("`texts` cannot be empty", field="texts")
    if options.top_n is not None and options.top_n < 1:
        raise InvalidArgumentError(
            f"`top_n` is {options.top_n}, expected at least 1", field="top_n", value=str(options.top_n)
        )
    if cross:
        run = await run_texts(
            tokenizing, model, [(query, text) for text in texts], "logits",
            truncate=options.truncate, direction=options.direction,
        )  # fmt: skip
        scores = run.matrix()[:, 0]
        scores = scores if options.raw_scores else sigmoid(scores)
    else:
        # A space stands for an empty text: it has the special tokens only, and those can be compared.
        run = await run_texts(
            tokenizing, model, [query, *(text or " " for text in texts)], "token_embeddings",
            truncate=options.truncate, direction=options.direction,
        )  # fmt: skip
        scores = await tokenizing.run(late_interaction, run, settings.tokenizer)
    order = np.argsort(-scores, kind="stable")[: options.top_n]
    best = scores[order]
    if not (cross or options.raw_scores):
        best = np.clip(best, 0, 1)
    return Ranking(order.tolist(), best, run.token_counts, run.timings)


def late_interaction(run: TextRun, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """Score documents against a query by the similarity of their tokens (MaxSim).

    Every token vector is scaled to length 1. The score of a document is the mean over the query's tokens,
    without its special tokens, of the greatest dot product with any token of the document (special tokens of
    the document take part: they give a document without words a score). A query that consists of special
    tokens only is taken with them.

    Args:
        run: token embeddings of the query (input 0) and of the documents (the others).
        tokenizer: special tokens are those that it makes of an empty text.

    Returns:
        float32 [documents], each in [-1, 1].
    """
    query_ids = np.frombuffer(run.tokens[0].ids, dtype="<i4")
    query = np.frombuffer(run.data[0], dtype="<f4").reshape(len(query_ids), -1)
    words = ~np.isin(query_ids, tokenizer.encode("").ids)
    if words.any():
        query = query[words]
    width = query.shape[1]
    documents = np.frombuffer(b"".join(run.data[1:]), dtype="<f4").reshape(-1, width)
    similarity = unit_rows(query) @ unit_rows(documents).T
    starts = np.cumsum([0, *run.token_counts[1:]])
    best = np.stack([similarity[:, start:stop].max(axis=1) for start, stop in pairwise(starts.tolist())])
    scores: NDArray[np.float32] = best.mean(axis=1, dtype=np.float32)
    return scores
