"""Classification: probabilities, order, labels, pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.server.errors import InvalidArgumentError, TaskNotSupportedError
from headrace.server.repository.model import Task
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.server.tasks.text_models import sigmoid, softmax
from headrace.server.tasks.tokenization import Tokenizing

LABELS = ("negative", "neutral", "positive")


async def test_scores_are_sorted_probabilities_of_all_labels(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=LABELS)
    result = await classify(tokenizing, model, ["good", "bad a b c"], ClassifyOptions())
    for row, text in enumerate(["good", "bad a b c"]):
        logits = reference(text)["logits"]
        expected = np.exp(logits) / np.exp(logits).sum()
        named = dict(result.named(row))
        assert set(named) == set(LABELS)
        np.testing.assert_allclose([named[label] for label in LABELS], expected, rtol=1e-5)
        scores = [score for _, score in result.named(row)]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        assert all(type(score) is np.float32 for score in scores)
    assert model.statistics.success.count == 1


async def test_raw_scores_are_logits(repository: Any, tokenizing: Tokenizing, reference: Any) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=LABELS)
    result = await classify(tokenizing, model, ["good"], ClassifyOptions(raw_scores=True))
    named = dict(result.named(0))
    np.testing.assert_allclose([named[label] for label in LABELS], reference("good")["logits"], rtol=1e-5)


async def test_multi_label_scores_are_independent(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=LABELS, multi_label=True)
    result = await classify(tokenizing, model, ["good"], ClassifyOptions())
    named = dict(result.named(0))
    expected = 1 / (1 + np.exp(-reference("good")["logits"]))
    np.testing.assert_allclose([named[label] for label in LABELS], expected, rtol=1e-5)


async def test_one_label_is_a_sigmoid(repository: Any, tokenizing: Tokenizing, reference: Any) -> None:
    model = repository.text("r", Task.RERANK, labels=("relevance",))
    result = await classify(tokenizing, model, [("good", "bad")], ClassifyOptions())
    ((label, score),) = result.named(0)
    assert label == "relevance"
    assert score == pytest.approx(1 / (1 + np.exp(-reference(("good", "bad"))["logits"][0])), rel=1e-5)


async def test_pairs_are_read_together(repository: Any, tokenizing: Tokenizing, reference: Any) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=LABELS)
    inputs: list[Any] = ["good", ("good", "bad"), "bad"]
    result = await classify(tokenizing, model, inputs, ClassifyOptions(raw_scores=True))
    for row, text in enumerate(inputs):
        named = dict(result.named(row))
        np.testing.assert_allclose([named[label] for label in LABELS], reference(text)["logits"], rtol=1e-5)


async def test_top_k(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("c", Task.CLASSIFY, labels=LABELS)
    whole = await classify(tokenizing, model, ["good", "bad"], ClassifyOptions())
    best = await classify(tokenizing, model, ["good", "bad"], ClassifyOptions(top_k=2))
    more = await classify(tokenizing, model, ["good", "bad"], ClassifyOptions(top_k=9))
    assert [best.named(row) for row in (0, 1)] == [whole.named(row)[:2] for row in (0, 1)]
    assert [more.named(row) for row in (0, 1)] == [whole.named(row) for row in (0, 1)]
    with pytest.raises(InvalidArgumentError, match="`top_k` is 0, expected at least 1"):
        await classify(tokenizing, model, ["good"], ClassifyOptions(top_k=0))


async def test_labels_without_names(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("c", Task.CLASSIFY)
    result = await classify(tokenizing, model, ["good"], ClassifyOptions())
    assert {label for label, _ in result.named(0)} == {"LABEL_0", "LABEL_1", "LABEL_2"}


async def test_other_tasks_do_not_classify(repository: Any, tokenizing: Tokenizing) -> None:
    with pytest.raises(TaskNotSupportedError, match="model 'e' is not a text classifier, its task is embed"):
        await classify(tokenizing, repository.text("e", Task.EMBED), ["good"], ClassifyOptions())


def test_extreme_logits() -> None:
    logits = np.array([[-1e4, 0, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(softmax(logits), [[0, 0, 1]], atol=1e-7)
        np.testing.assert_allclose(sigmoid(logits), [[0, 0.5, 1]], atol=1e-7)
