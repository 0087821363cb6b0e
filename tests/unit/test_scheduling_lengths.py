"""Which texts are cheapest to run together: against every way to divide them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.base import Padding
from headrace.server.scheduling.lengths import SCORES, cheapest_batch
from headrace.server.scheduling.policy import BatchingPolicy


def policy(max_tokens: int = 100, overhead_tokens: int = 10, padding: Padding = "all") -> BatchingPolicy:
    return BatchingPolicy(
        join=True, max_rows=64, max_tokens=max_tokens, overhead_tokens=overhead_tokens, padding=padding
    )


def divisions(lengths: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list into neighbours."""
    if not lengths:
        yield []
    for size in range(1, len(lengths) + 1):
        for rest in divisions(lengths[size:]):
            yield [lengths[:size], *rest]


def cost(batch: list[int], limits: BatchingPolicy, limit: int) -> float:
    packed = limits.padding == "attention"
    tokens = sum(batch) if packed else len(batch) * max(batch)
    scores = len(batch) * max(batch) ** 2 // SCORES if packed else 0
    allowed = len(batch) == 1 or (len(batch) <= limit and tokens <= limits.max_tokens)
    return tokens + scores + limits.overhead_tokens if allowed else float("inf")


@given(
    st.lists(st.integers(1, 60) | st.integers(1, 500), min_size=1, max_size=8).map(sorted),
    st.integers(0, 30),
    st.integers(20, 200),
    st.integers(1, 8),
    st.sampled_from(["all", "attention"]),
)
def test_no_other_division_costs_less(
    lengths: list[int], overhead: int, budget: int, limit: int, padding: Padding
) -> None:
    limits = policy(budget, overhead, padding)
    batches = []
    at = 0
    while at < len(lengths):
        low, high = cheapest_batch(lengths, at, limits, limit)
        assert low == at
        # whichever text of it is asked for, it is the same batch
        assert {cheapest_batch(lengths, each, limits, limit) for each in range(low, high)} == {(low, high)}
        batches.append(lengths[low:high])
        at = high
    found = sum(cost(batch, limits, limit) for batch in batches)
    least = min(sum(cost(batch, limits, limit) for batch in division) for division in divisions(lengths))
    assert found == least


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([8, 8, 8, 8], [(0, 4)]),  # nothing is padded
        ([5, 6, 7, 14, 15], [(0, 3), (3, 5)]),  # padding three texts by 8 costs more than a run
        ([10, 14], [(0, 2)]),  # padding one by 4 costs less
        ([30, 30, 30, 30], [(0, 3), (3, 4)]),  # 100 tokens hold three of them
        ([150, 150], [(0, 1), (1, 2)]),  # longer than a batch: alone
    ],
)
def test_texts_are_padded_as_long_as_that_is_cheaper_than_a_run(
    lengths: list[int], batches: list[tuple[int, int]]
) -> None:
    found = {cheapest_batch(lengths, at, policy(), 64) for at in range(len(lengths))}
    assert sorted(found) == batches
