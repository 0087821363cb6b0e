"""Generation benchmarks: what is asked for, and the arithmetic on when the answers came."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

import pytest
from benchmark_import import module
from hypothesis import given
from hypothesis import strategies as st

figures = module("generation.figures")
scenarios = module("generation.scenarios")
work = module("generation.work")
workload = module("generation.workload")


def some_work(new_tokens: list[int], callers: int | None = None, gaps: list[float] | None = None) -> Any:
    return work.Work([[1, 2]] * len(new_tokens), new_tokens, callers or len(new_tokens), gaps or [])


def some_trace(times: list[list[float]], sent: list[float] | None = None) -> Any:
    return work.Trace(100.0, sent or [100.0] * len(times), times, [[] for _ in times], [])


def test_prompts_are_the_same_every_time_and_no_two_begin_alike() -> None:
    first = workload.uniform(32, 128, 64, workload.source("a", 1))
    assert first == workload.uniform(32, 128, 64, workload.source("a", 1))
    assert first != workload.uniform(32, 128, 64, workload.source("a", 2))
    assert len({tuple(prompt[:8]) for prompt in first.prompts}) == 32
    assert first.uniform
    assert all(100 <= token < 49_000 for prompt in first.prompts for token in prompt)


@given(st.integers(0, 50), st.integers(0, 300), st.integers(1, 40), st.integers(0, 99))
def test_spread_covers_its_range_evenly_in_every_stretch(
    low: int, width: int, blocks: int, seed: int
) -> None:
    values = workload.spread(low, low + width, 8 * blocks, random.Random(seed))
    assert len(values) == 8 * blocks
    assert low <= min(values) <= max(values) <= low + width
    middle = low + width / 2
    for start in range(0, len(values), 8):
        assert abs(sum(values[start : start + 8]) / 8 - middle) <= width / 16 + 1


def test_mixed_requests_are_staggered_and_as_long_as_the_static_batch_on_average() -> None:
    scenario = next(each for each in scenarios.SCENARIOS if each.kind == "mixed")
    mixed = workload.mixed(scenario, 16, workload.source("m"), 0.2)
    assert mixed.callers == len(mixed.gaps) == 16
    assert mixed.gaps == sorted(mixed.gaps)
    assert mixed.gaps[0] == 0.0 < mixed.gaps[1]
    assert not mixed.uniform
    lengths = [len(prompt) for prompt in mixed.prompts]
    assert sum(lengths) / len(lengths) == pytest.approx(sum(scenario.prompt_range) / 2, abs=1)
    assert sum(mixed.new_tokens) / len(lengths) == pytest.approx(sum(scenario.output_range) / 2, abs=1)
    assert max(lengths) + max(mixed.new_tokens) <= workload.longest(scenario)


def test_a_prefix_is_shared_and_its_suffix_is_not() -> None:
    draw = workload.source("p")
    shared = workload.prompt(draw, 1000)
    (cold,), (warm,) = (workload.prefixed(shared, 8, draw).prompts for _ in range(2))
    assert cold[:1000] == warm[:1000] == shared
    assert cold[1000:] != warm[1000:]


async def test_callers_ask_one_request_at_a_time_until_none_is_left() -> None:
    busy: set[int] = set()
    most = 0

    async def ask(number: int, trace: Any) -> None:
        nonlocal most
        busy.add(number)
        most = max(most, len(busy))
        await asyncio.sleep(0.001)
        busy.remove(number)
        if number == 3:
            raise ValueError("no room")
        trace.times[number].append(time.monotonic())

    trace = await work.drive(some_work([1] * 10, callers=4), ask)
    assert most == 4
    assert trace.errors == ["ValueError: no room"]
    assert [len(times) for times in trace.times] == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert trace.sent == sorted(trace.sent)


def test_rates_of_a_batch() -> None:
    # Two sequences: first tokens after 1 s and 2 s, then one each a second until 5 s after the beginning.
    trace = some_trace([[101.0, 102.0, 103.0, 104.0, 105.0], [102.0, 103.0, 104.0, 105.0]])
    found = figures.figures(some_work([5, 5]), trace)
    assert found.tokens == 9
    assert found.missing == 1
    assert found.rate == pytest.approx(9 / 5)
    assert found.decode_rate == pytest.approx(6 / 3)
    assert found.ttft_ms == pytest.approx(1500.0)
    assert found.itl_p50_ms == found.itl_p99_ms == pytest.approx(1000.0)


def test_time_to_first_token_counts_from_when_a_request_was_sent() -> None:
    found = figures.figures(some_work([1, 1]), some_trace([[101.0], [103.0]], sent=[100.5, 102.5]))
    assert found.ttft_ms == pytest.approx(500.0)


def test_one_slow_step_of_a_hundred_is_the_99th_percentile_no_more() -> None:
    times = [100.0 + index for index in range(200)]
    times[150:] = [moment + 5.0 for moment in times[150:]]
    found = figures.figures(some_work([200]), some_trace([times]))
    assert found.itl_p50_ms == found.itl_p99_ms == pytest.approx(1000.0)


def test_staggered_work_is_rated_while_everybody_has_something_to_do() -> None:
    # Two callers, the second begins at 2 s; the last of four requests is sent at 8 s.
    trace = some_trace(
        [[101.0, 103.0], [104.0, 106.0], [107.0, 109.0], [108.0, 112.0]], sent=[100.0, 102.0, 104.0, 108.0]
    )
    found = figures.figures(some_work([2] * 4, callers=2, gaps=[0.0, 2.0]), trace)
    # 103, 104, 106, 107, 108 lie in (102, 108].
    assert found.rate == pytest.approx(5 / 6)
    assert math.isnan(found.decode_rate)


def test_a_sequence_without_tokens_has_no_decode_rate() -> None:
    found = figures.figures(some_work([2, 2]), some_trace([[101.0, 102.0], []]))
    assert math.isnan(found.decode_rate)
    assert found.missing == 2


def test_agreement_ends_at_the_first_difference() -> None:
    ours, theirs = some_trace([[], []]), some_trace([[], []])
    ours.tokens, theirs.tokens = [[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]
    assert figures.agreement(ours, theirs) == pytest.approx(4 / 6)
    theirs.tokens[1] = []
    assert figures.agreement(ours, theirs) is None
