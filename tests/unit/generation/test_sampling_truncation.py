"""Temperature and filters against transformers' logits warpers, and draws against their distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.truncation import Weights, truncate

Probabilities = NDArray[np.float64]


def probabilities(weights: Weights, size: int) -> Probabilities:
    result = np.zeros(size)
    result[slice(None) if weights.ids is None else weights.ids] = weights.values
    return np.asarray(result / result.sum())


def ours(row: NDArray[np.float32], **parameters: Any) -> Probabilities:
    with np.errstate(all="ignore"):
        return probabilities(truncate(row.copy(), Sampling(max_tokens=1, **parameters)), row.size)


def theirs(row: NDArray[np.float32], **parameters: Any) -> Probabilities:
    """What transformers draws from, with its warpers in the order in which generate applies them."""
    import torch
    import transformers as hf

    scores = torch.from_numpy(row.copy())[None]
    history: Any = torch.zeros(1, 1, dtype=torch.long)
    warpers: list[Any] = [hf.TemperatureLogitsWarper(float(parameters.get("temperature", 1.0)))]
    if parameters.get("top_k"):
        warpers.append(hf.TopKLogitsWarper(parameters["top_k"]))
    if parameters.get("top_p", 1.0) < 1:
        warpers.append(hf.TopPLogitsWarper(parameters["top_p"]))
    if parameters.get("min_p"):
        warpers.append(hf.MinPLogitsWarper(parameters["min_p"]))
    if parameters.get("typical_p", 1.0) < 1:
        warpers.append(hf.TypicalLogitsWarper(parameters["typical_p"]))
    for warper in warpers:
        scores = warper(history, scores)
    return np.asarray(scores.double().softmax(-1)[0].numpy())


def assert_same(actual: Probabilities, expected: Probabilities) -> None:
    assert np.array_equal(actual > 0, expected > 0)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-9)


CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 7, "temperature": 0.4},
    {"top_k": 400},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 0.9, "temperature": 0.7},
    {"top_p": 0.03},
    {"top_p": 1e-9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 0.9},
    {"min_p": 1.0},
    {"typical_p": 0.9},
    {"typical_p": 0.2, "temperature": 1.5},
    {"typical_p": 1e-6},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.7, "temperature": 0.8},
    {"top_k": 3, "typical_p": 0.5},
    {"top_p": 0.5, "typical_p": 0.5},
]


@pytest.mark.parametrize("parameters", CASES, ids=str)
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_filters_keep_what_transformers_keeps(parameters: dict[str, Any], spread: float) -> None:
    random = np.random.default_rng(7)
    for size in (2, 15, 200, 3001):
        row = (random.standard_normal(size) * spread).astype(np.float32)
        assert_same(ours(row, **parameters), theirs(row, **parameters))


@pytest.mark.parametrize("parameters", CASES, ids=str)
def test_impossible_tokens_stay_impossible(parameters: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    row = random.standard_normal(500).astype(np.float32)
    row[random.random(500) < 0.9] = -np.inf
    assert_same(ours(row, **parameters), theirs(row, **parameters))
    row[:] = -np.inf
    row[123] = -4.0
    alone = ours(row, **parameters)
    assert alone[123] == 1
    assert alone.sum() == 1


def test_ties_at_the_edge_of_top_k_are_all_kept() -> None:
    row = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    assert np.flatnonzero(ours(row, top_k=3)).tolist() == [1, 2, 3, 4, 5]
    assert_same(ours(row, top_k=3), theirs(row, top_k=3))


def test_ties_at_the_edge_of_top_p_go_one_by_one_lower_ids_first() -> None:
    row = np.zeros(8, np.float32)
    # seven eighths hold 0.8: one of the eight equals may go, the first one
    assert np.flatnonzero(ours(row, top_p=0.8)).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.flatnonzero(ours(row, top_p=0.3)).tolist() == [5, 6, 7]
    assert np.count_nonzero(theirs(row, top_p=0.3)) == 3


def test_the_most_likely_token_survives_an_empty_nucleus() -> None:
    row = np.array([0.5, 2.0, 1.0, 2.0], np.float32)
    assert np.count_nonzero(ours(row, top_p=0.0)) == 1
    assert ours(row, top_p=0.0).argmax() in {1, 3}
    assert np.count_nonzero(ours(np.zeros(5000, np.float32), top_p=0.0)) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-3])
def test_cold_is_greedy(temperature: float) -> None:
    row = np.random.default_rng(0).standard_normal(300).astype(np.float32) * 5
    assert ours(row, temperature=temperature)[row.argmax()] == pytest.approx(1)


def test_hot_is_uniform() -> None:
    row = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    np.testing.assert_allclose(ours(row, temperature=1e6), 1 / 300, rtol=1e-4)
    assert_same(ours(row, temperature=100.0), theirs(row, temperature=100.0))


def test_draws_follow_the_cumulative_distribution() -> None:
    for size in (1, 5, 255, 256, 257, 1000):
        values = np.random.default_rng(size).random(size).astype(np.float32)
        values[::3] = 0
        if size == 1:
            values[0] = 1
        edges = np.cumsum(values, dtype=np.float64)
        edges /= edges[-1]
        weights = Weights(None, values)
        for uniform in (0.0, 0.1, 0.5, 0.77, 0.999, np.nextafter(1, 0)):
            token = weights.draw(float(uniform))
            assert values[token] > 0
            before = edges[token - 1] if token else 0
            assert before - 1e-6 <= uniform <= edges[token] + 1e-6


def test_draws_name_the_kept_ids() -> None:
    weights = Weights(np.array([4, 9, 11]), np.array([1, 0, 1], np.float32))
    assert [weights.draw(u) for u in (0.0, 0.49, 0.51, 0.99)] == [4, 4, 11, 11]
