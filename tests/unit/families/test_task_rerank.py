"""Reranking: cross-encoders, late interaction, order, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.server.errors import (
    InputEmptyError,
    InputTooLongError,
    InvalidArgumentError,
    TaskNotSupportedError,
)
from headrace.server.repository.model import Task
from headrace.server.tasks import rerank as rerank_module
from headrace.server.tasks.rerank import RerankOptions, rerank
from headrace.server.tasks.tokenization import Tokenizing

QUERY = "what is the capital of france"
TEXTS = ["banana", "paris is the capital of france", "berlin germany", "deep learning"]


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def max_similarity(reference: Any, query: str, text: str) -> float:
    """MaxSim written down directly, token by token."""
    asked = unit(reference(query)["token_embeddings"])[1:-1]
    given = unit(reference(text)["token_embeddings"])
    return float(np.mean([max(float(a @ b) for b in given) for a in asked]))


async def test_late_interaction(repository: Any, tokenizing: Tokenizing, reference: Any) -> None:
    model = repository.text("e", Task.EMBED)
    result = await rerank(tokenizing, model, QUERY, TEXTS, RerankOptions(raw_scores=True))
    expected = [max_similarity(reference, QUERY, text) for text in TEXTS]
    assert result.order == sorted(range(4), key=lambda index: -expected[index])
    assert result.order[0] == 1
    np.testing.assert_allclose(result.scores, [expected[index] for index in result.order], atol=1e-6)
    assert model.statistics.success.count == 1
    assert model.statistics.inference_count == 5  # the query once and the texts
    assert len(result.token_counts) == 5


async def test_many_texts_are_scored_in_windows(
    repository: Any, tokenizing: Tokenizing, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank_module, "WINDOW", 2)
    model = repository.text("e", Task.EMBED)
    texts = [*TEXTS, "good"]
    result = await rerank(tokenizing, model, QUERY, texts, RerankOptions(raw_scores=True))
    expected = [max_similarity(reference, QUERY, text) for text in texts]
    assert result.order == sorted(range(5), key=lambda index: -expected[index])
    np.testing.assert_allclose(result.scores, [expected[index] for index in result.order], atol=1e-6)
    assert model.statistics.inference_count == len(result.token_counts) == 6
    assert model.statistics.success.count == 3
    assert result.timings.inference_ns == 3 * 20


async def test_late_interaction_scores_lie_between_0_and_1(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED)
    raw = await rerank(tokenizing, model, "z", ["q", "z", "x y"], RerankOptions(raw_scores=True))
    cut = await rerank(tokenizing, model, "z", ["q", "z", "x y"], RerankOptions())
    assert cut.order == raw.order
    np.testing.assert_allclose(cut.scores, np.clip(raw.scores, 0, 1))
    assert cut.scores[0] == pytest.approx(1, abs=1e-6)


async def test_query_of_special_tokens_only(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("e", Task.EMBED)
    result = await rerank(tokenizing, model, " ", ["good", " "], RerankOptions())
    assert result.order == [0, 1]
    np.testing.assert_allclose(result.scores, [1, 1], atol=1e-6)  # every text has these tokens too


@pytest.mark.parametrize("task", [Task.RERANK, Task.CLASSIFY])
async def test_cross_encoder(repository: Any, tokenizing: Tokenizing, reference: Any, task: Task) -> None:
    model = repository.text("r", task, labels=("relevance",))
    logits = [float(reference((QUERY, text))["logits"][0]) for text in TEXTS]
    order = sorted(range(4), key=lambda index: -logits[index])
    raw = await rerank(tokenizing, model, QUERY, TEXTS, RerankOptions(raw_scores=True))
    scaled = await rerank(tokenizing, model, QUERY, TEXTS, RerankOptions())
    assert raw.order == scaled.order == order
    np.testing.assert_allclose(raw.scores, [logits[index] for index in order], rtol=1e-4)
    np.testing.assert_allclose(
        scaled.scores, [1 / (1 + np.exp(-logits[index])) for index in order], rtol=1e-4
    )


async def test_top_n_and_ties(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("r", Task.RERANK, labels=("relevance",))
    texts = ["good", "bad", "good", "bad"]
    whole = await rerank(tokenizing, model, QUERY, texts, RerankOptions())
    assert whole.order in ([0, 2, 1, 3], [1, 3, 0, 2])  # equal scores keep the order of the texts
    best = await rerank(tokenizing, model, QUERY, texts, RerankOptions(top_n=3))
    assert best.order == whole.order[:3]
    assert len(best.scores) == 3
    with pytest.raises(InvalidArgumentError, match="`top_n` is 0, expected at least 1"):
        await rerank(tokenizing, model, QUERY, texts, RerankOptions(top_n=0))


@pytest.mark.parametrize("task", [Task.RERANK, Task.EMBED])
async def test_empty_inputs(repository: Any, tokenizing: Tokenizing, task: Task) -> None:
    model = repository.text("m", task, labels=("relevance",))
    with pytest.raises(InputEmptyError, match="`inputs` cannot be empty") as empty:
        await rerank(tokenizing, model, "", ["a", ""], RerankOptions())
    assert empty.value.metadata["index"] == "1"
    without_query = await rerank(tokenizing, model, "", TEXTS, RerankOptions())
    assert sorted(without_query.order) == [0, 1, 2, 3]
    assert np.isfinite(without_query.scores).all()
    with pytest.raises(InputEmptyError, match="`texts` cannot be empty"):
        await rerank(tokenizing, model, QUERY, [], RerankOptions())
    with_empty = await rerank(tokenizing, model, QUERY, ["", "paris"], RerankOptions())
    assert sorted(with_empty.order) == [0, 1]
    assert np.isfinite(with_empty.scores).all()


@pytest.mark.parametrize("task", [Task.RERANK, Task.EMBED])
async def test_too_long(repository: Any, tokenizing: Tokenizing, task: Task) -> None:
    model = repository.text("m", task, labels=("relevance",), max_tokens=6)
    with pytest.raises(InputTooLongError, match="must have less than 6 tokens"):
        await rerank(tokenizing, model, "a", ["a b c a b c a b c"], RerankOptions(truncate=False))
    assert (await rerank(tokenizing, model, "a", ["a b c a b c a b c"], RerankOptions())).order == [0]


async def test_models_that_cannot_rank(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=("a", "b", "c"))
    with pytest.raises(
        TaskNotSupportedError, match="model 'c' is not a re-ranker model, its task is classify"
    ):
        await rerank(tokenizing, model, QUERY, TEXTS, RerankOptions())
