"""Ordering texts by their relevance to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.batching import USUAL, Queueing
from headrace.server.tasks.embed import unit_rows
from headrace.server.tasks.text_encoding import Direction, Text, resolve_prompt
from headrace.server.tasks.text_models import Timings, check_token_vectors, run_texts, sigmoid, text_settings
from headrace.server.tasks.text_tokens import first_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.server.repository.model import Model, TextSettings
    from headrace.server.tasks.text_encoding import Tokens
    from headrace.server.tasks.tokenization import Tokenizing

WINDOW: Final = 128
"""Texts whose token vectors are held at a time: some 50 MB for 256 tokens of width 384 each."""


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """How to rank.

    Attributes:
        raw_scores: give the model's own scores instead of scores in [0, 1].
        top_n: only this many best texts, at least 1; None for all.
        truncate: cut what is too long; None for yes.
        direction: which end is cut.
        limit: at most this many tokens of a pair (a text, where each is encoded alone), at least 1; None for
            as many as the model takes.
        query_limit: at most this many tokens of the query itself, without special tokens; None for all.
        text_limit: the same of each text.
        queueing: how its parts wait for their batches.
    """

    raw_scores: bool = False
    top_n: int | None = None
    truncate: bool | None = None
    direction: Direction = Direction.RIGHT
    limit: int | None = None
    query_limit: int | None = None
    text_limit: int | None = None
    queueing: Queueing = USUAL


@dataclass(slots=True)
class Ranking:
    """Texts by descending relevance.

    Attributes:
        order: positions of the texts in the request.
        scores: float32, alike.
        inputs: what the model read: pairs of the query and a text, or the query and the texts.
        token_counts: of these.
        timings: of the whole.
    """

    order: list[int]
    scores: NDArray[np.float32]
    inputs: list[Text]
    token_counts: list[int]
    timings: Timings


async def rerank(
    tokenizing: Tokenizing, model: Model, query: str, texts: Sequence[str], options: RerankOptions
) -> Ranking:
    """Score every text against ``query`` and sort; equal scores keep the order of the texts.

    A cross-encoder (task ``rerank``, or ``classify`` with a single label) reads query and text together; its
    score is the sigmoid of its logit, with ``raw_scores`` the logit. An embedding model ranks by late
    interaction, see :func:`max_similarity`; its raw score in [-1, 1] is cut at 0 unless ``raw_scores``. The
    query is encoded once for it.

    Raises:
        TaskNotSupportedError: the model cannot rank.
        InputEmptyError: there are no texts, or the query and a text are both empty. Where only one of them is
            empty they are scored like any other.
        InvalidArgumentError: ``top_n`` below 1, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    settings = ranking_settings(model)
    if not texts:
        raise InputEmptyError("`texts` cannot be empty", field="texts")
    if not query and "" in texts:
        empty = texts.index("")
        raise InputEmptyError("`inputs` cannot be empty", field="inputs", index=str(empty))
    if options.top_n is not None and options.top_n < 1:
        raise InvalidArgumentError(
            f"`top_n` is {options.top_n}, expected at least 1", field="top_n", value=str(options.top_n)
        )
    (query,) = await first_tokens(tokenizing, settings, [query], options.query_limit)
    texts = await first_tokens(tokenizing, settings, texts, options.text_limit)
    inputs: list[Text] = [query, *texts]
    if cross := is_cross_encoder(model):
        inputs = [(query, text) for text in texts]
        run = await run_texts(
            tokenizing, model, inputs, "logits",
            truncate=options.truncate, direction=options.direction, limit=options.limit,
            queueing=options.queueing,
        )  # fmt: skip
        scored = _Scored(run.matrix()[:, 0], run.token_counts, run.timings)
        if not options.raw_scores:
            scored.scores = sigmoid(scored.scores)
    else:
        scored = await _late_interaction(tokenizing, model, settings, query, texts, options)
    order = np.argsort(-scored.scores, kind="stable")[: options.top_n]
    best = scored.scores[order]
    if not (cross or options.raw_scores):
        best = np.clip(best, 0, 1)
    return Ranking(order.tolist(), best, inputs, scored.token_counts, scored.timings)


def merged(groups: Sequence[tuple[Sequence[int], Ranking]]) -> Ranking:
    """Join rankings of the texts of one request, made one after another; equal scores keep their order.

    Args:
        groups: the positions in the request of the texts of a ranking, and the ranking.
    """
    ranks = [
        (places[index], score)
        for places, ranking in groups
        for index, score in zip(ranking.order, ranking.scores, strict=True)
    ]
    ranks.sort(key=lambda rank: -rank[1])
    timings = Timings()
    for _, ranking in groups:
        timings.then(ranking.timings)
    return Ranking(
        [place for place, _ in ranks],
        np.array([score for _, score in ranks], dtype=np.float32),
        [text for _, ranking in groups for text in ranking.inputs],
        [count for _, ranking in groups for count in ranking.token_counts],
        timings,
    )


def is_cross_encoder(model: Model) -> bool:
    """Whether a model reads two texts together and gives one score."""
    one_label = model.text is not None and len(model.text.labels) == 1
    return model.task is Task.RERANK or (model.task is Task.CLASSIFY and one_label)


def ranking_settings(model: Model) -> TextSettings:
    """Return the settings of a model that ranks.

    Raises:
        TaskNotSupportedError: it is no cross-encoder, and no embedding model that gives vectors of tokens.
    """
    embeds = model.task is Task.EMBED
    settings = text_settings(model, embeds or is_cross_encoder(model), "a re-ranker model")
    if embeds:
        check_token_vectors(model, "a re-ranker model")
    return settings


@dataclass(slots=True)
class _Scored:
    """Scores in the order of the texts, and what they cost."""

    scores: NDArray[np.float32]
    token_counts: list[int]
    timings: Timings


async def _late_interaction(
    tokenizing: Tokenizing,
    model: Model,
    settings: TextSettings,
    query: str,
    texts: Sequence[str],
    options: RerankOptions,
) -> _Scored:
    """Encode the query with the first window of texts, and score window by window."""
    scores: list[NDArray[np.float32]] = []
    counts: list[int] = []
    timings = Timings()
    asked: NDArray[np.float32] | None = None
    for start in range(0, len(texts), WINDOW):
        inputs = list(texts[start : start + WINDOW])
        if asked is None:
            inputs.insert(0, query)
        # A space stands for an empty text: it has the special tokens only, and those can be compared.
        inputs = [text or " " for text in inputs]
        run = await run_texts(
            tokenizing, model, inputs, "token_embeddings",
            truncate=options.truncate, direction=options.direction, limit=options.limit,
            prompt=resolve_prompt(settings, None), queueing=options.queueing.after(start),
        )  # fmt: skip
        counts += run.token_counts
        timings.then(run.timings)
        documents = run.data
        if asked is None:
            asked = await tokenizing.run(query_vectors, run.tokens[0], run.data[0], settings.tokenizer)
            documents = run.data[1:]
        scores.append(await tokenizing.run(max_similarity, asked, documents))
    return _Scored(np.concatenate(scores), counts, timings)


def query_vectors(tokens: Tokens, data: bytes, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """Return the query's token vectors, [tokens, width], each of length 1, without special tokens.

    Special tokens are those that the tokenizer makes of an empty text; a query of nothing else keeps them.
    """
    ids = np.frombuffer(tokens.ids, dtype="<i4")
    vectors = np.frombuffer(data, dtype="<f4").reshape(len(ids), -1)
    words = ~np.isin(ids, tokenizer.encode("").ids)
    return unit_rows(vectors[words] if words.any() else vectors)


def max_similarity(query: NDArray[np.float32], documents: Sequence[bytes]) -> NDArray[np.float32]:
    """Score documents against a query by the similarity of their tokens (MaxSim).

    The score of a document is the mean over the query's tokens of the greatest dot product with any token of
    the document, every vector scaled to length 1. Special tokens of the document take part: they give a
    document without words a score.

    Args:
        query: what :func:`query_vectors` returns.
        documents: float32 [tokens, width] of each document, little-endian.

    Returns:
        float32 [documents], each in [-1, 1].
    """
    scores = np.empty(len(documents), dtype=np.float32)
    for index, data in enumerate(documents):
        vectors = unit_rows(np.frombuffer(data, dtype="<f4").reshape(-1, query.shape[1]))
        scores[index] = (query @ vectors.T).max(axis=1).mean()
    return scores
