"""The pure parts of benchmarks/: estimates, the seeded mix, the closed loop, bars and reports."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_import import module
from hypothesis import given
from hypothesis import strategies as st

bars = module("bars")
closed_loop = module("closed_loop")
estimates = module("estimates")
mix = module("mix")
raw = module("raw")
report = module("report")
results = module("results")
runner = module("runner")
scenarios = module("scenarios")
table = module("table")


def credit(spans: list[tuple[float, float]], weights: list[float] | None = None) -> float:
    columns = np.asarray(spans, float).reshape(-1, 2)
    value: float = estimates.credited(
        columns[:, 0],
        columns[:, 1],
        estimates.Window(10.0, 20.0),
        None if weights is None else np.asarray(weights),
    )
    return value


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(11, 12), (12, 19)], 2.0),
        ([(5, 15)], 0.5),
        ([(15, 35)], 0.25),
        ([(0, 40)], 0.25),
        ([(0, 10), (20, 30)], 0.0),
    ],
)
def test_a_request_counts_for_its_time_inside_the_window(
    spans: list[tuple[float, float]], expected: float
) -> None:
    assert credit(spans) == pytest.approx(expected)


def test_weights_scale_what_a_request_counts() -> None:
    assert credit([(11, 12), (5, 15)], [3.0, 4.0]) == pytest.approx(5.0)


def test_bursts_of_slow_requests_give_the_steady_rate() -> None:
    # 32 callers, all answered together every 8 s: 4 requests a second, though the window sees one burst.
    spans = [(start, start + 8.0) for start in (0.0, 8.0, 16.0) for _ in range(32)]
    assert credit(spans) / 10.0 == pytest.approx(4.0)


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[int], share: float) -> None:
    found = estimates.percentile(np.asarray(values, float), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(estimates.percentile(np.empty(0), 0.5))


def test_latencies_are_of_requests_that_touch_the_window() -> None:
    starts, ends = np.asarray([0.0, 9.0, 19.5, 25.0]), np.asarray([9.0, 10.5, 21.0, 26.0])
    assert estimates.latencies_ms(starts, ends, estimates.Window(10.0, 20.0)).tolist() == [1500.0, 1500.0]


def test_ratio_relates_to_the_mean_of_the_neighbours() -> None:
    assert estimates.ratio(90.0, 80.0, 120.0) == pytest.approx(0.9)
    assert math.isnan(estimates.ratio(1.0, 0.0, 0.0))


def test_middle_ignores_what_was_not_measured() -> None:
    assert estimates.middle([3.0, None, 1.0, 2.0]) == 2.0
    assert estimates.middle([None]) is None


def test_every_block_of_the_mix_has_22_queries_and_10_passages() -> None:
    drawn = mix.lengths(4, seed=1)
    for start in range(0, len(drawn), 32):
        block = drawn[start : start + 32]
        assert sum(5 <= count <= 15 for count in block) == 22
        assert sum(60 <= count <= 250 for count in block) == 10
    assert drawn == mix.lengths(4, seed=1)
    assert drawn != mix.lengths(4, seed=2)


def test_texts_have_a_word_for_each_token_but_the_special_ones() -> None:
    written = mix.texts([5, 60], ["alpha", "beta"], seed=1)
    assert [len(text.split()) for text in written] == [3, 58]
    assert set(" ".join(written).split()) == {"alpha", "beta"}


@given(st.integers(1, 300))
def test_spread_is_a_permutation_whose_halves_are_even_samples(count: int) -> None:
    order = mix.spread(count)
    assert sorted(order) == list(range(count))
    half = order[: count // 2]
    assert abs(sum(index < count / 2 for index in half) - len(half) / 2) <= 3


def test_layouts_use_every_core_once() -> None:
    found = raw.layouts(6)
    assert {(layout.instances, layout.threads) for layout in found} == {(6, 1), (3, 2), (1, 6)}
    assert [layout.spinning for layout in found].count(True) == 1
    assert raw.layouts(1) == [raw.Layout(1, 1)]


def test_batches_larger_than_a_request_are_not_tried() -> None:
    assert raw.group_batches((1, 2, 4), 2) == [1, 2]
    assert raw.group_batches((1, 2, 4), 0) == [1, 2, 4]


async def test_closed_loop_keeps_every_caller_busy_and_waits_for_the_last_answer() -> None:
    now = time.monotonic()
    window = estimates.Window(now, now + 0.5)
    asked: list[bytes] = []
    busy = most = 0

    async def ask(body: bytes) -> None:
        nonlocal busy, most
        asked.append(body)
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.7 if body == b"slow" else 0.01)
        busy -= 1

    loop = closed_loop.ClosedLoop([b"slow", b"a", b"b"], [5.0, 1.0, 1.0], window)
    outcome = await loop.run([ask, ask])
    assert most == 2
    assert asked[:4] == [b"slow", b"a", b"b", b"slow"]
    assert outcome.failed == 0
    assert (outcome.starts < window.end).all()
    # Both slow requests began inside the window and ended after it; they are there nevertheless.
    assert (outcome.ends[outcome.weights == 5.0] > window.end).sum() == 2


async def test_closed_loop_reports_failures_and_goes_on() -> None:
    now = time.monotonic()
    loop = closed_loop.ClosedLoop([b"bad", b"good"], [1.0, 1.0], estimates.Window(now, now + 0.2))

    async def ask(body: bytes) -> None:
        await asyncio.sleep(0.001)
        if body == b"bad":
            raise ValueError("no such model")

    outcome = await loop.run([ask])
    assert outcome.failed >= 1
    assert outcome.errors[0] == "ValueError: no such model"
    assert len(outcome.starts) >= 1


def measurement(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "rate": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu": {"server": 0.4, "client": 0.2},
        "cpu_per_item": 0.6, "other_cores": 0.0,
    }  # fmt: skip
    return results.Measurement(**{**values, **changes})


def a_run() -> Any:
    point = results.PointResult("grpc", 32, [measurement(of_raw=value) for value in (0.80, 0.95, 0.93)])
    idle = results.PointResult("grpc", 1, [measurement(of_twin=0.96, other_cores=0.5, rate=math.nan)])
    reference = results.ReferenceResult("raw", "2x1 threads, batches of 4", [99.0, 101.0], cpu=[10.0])
    scenario = results.ScenarioResult(
        "encoding-1", "texts", "texts", 1, [reference], [idle, point], "verified"
    )
    machine = {
        "cpu": "a processor", "cores": 2, "memory_gib": 4.0, "system": "Linux", "python": "3.11",
        "packages": {"numpy": "2"}, "revision": "abc", "modified": False,
    }  # fmt: skip
    return results.RunResult("2026-01-01T00:00:00+00:00", machine, {"rounds": 3, "seconds": 6.0}, [scenario])


def test_bars_are_judged_by_the_median_of_the_rounds() -> None:
    verdicts = {
        (each.bar.route, each.bar.clients, each.bar.metric): each for each in bars.judge(a_run().cells())
    }
    assert verdicts["grpc", 32, "of_raw"].value == 0.93
    assert verdicts["grpc", 32, "of_raw"].met is True
    assert verdicts["grpc", 1, "of_twin"].met is True
    assert verdicts["rest", 32, "of_raw"].met is None
    assert not bars.Verdict(bars.Bar("tiny", "grpc", 8, "server_cpu_of_empty", 1.5), 1.51).met
    assert bars.Verdict(bars.Bar("tiny", "grpc", 8, "server_cpu_of_empty", 1.5), 1.5).met


def test_of_a_group_of_bars_one_is_enough() -> None:
    either = [bars.Bar(name, "grpc", 1, "of peer", 1.0, group="either") for name in ("int8", "int4")]
    other = bars.Bar("int8", "grpc", 8, "of peer", 1.0)

    def judged(cells: Any) -> list[tuple[bool | None, bool]]:
        return [(each.met, each.excused) for each in bars.judge(cells, [*either, other])]

    met = {("int8", "grpc", 1): {"of peer": 1.1}, ("int8", "grpc", 8): {"of peer": 0.9}}
    assert judged(met) == [(True, True), (None, True), (False, False)]
    assert judged({("int4", "grpc", 1): {"of peer": 0.9}}) == [(None, False), (False, False)]


def test_every_bar_names_a_point_that_is_measured() -> None:
    known = {
        (scenario.name, point.route.name, point.clients)
        for scenario in scenarios.SCENARIOS
        for point in scenarios.points(scenario)
    }
    assert {(bar.scenario, bar.route, bar.clients) for bar in bars.BARS} <= known


def test_points_are_related_to_their_neighbours() -> None:
    by_name = {scenario.name: scenario for scenario in scenarios.SCENARIOS}
    alone = scenarios.Point(by_name["image"], by_name["image"].routes[0], 1)
    measured = measurement()
    names = runner.reference_names(alone)
    readings = {name: runner.Reading(rate, 0.3) for name, rate in zip(names, (200.0, 125.0), strict=True)}
    runner.relate(alone, measured, readings, readings)
    assert (measured.of_raw, measured.of_twin, measured.cpu_of_raw) == (0.5, 0.8, 2.0)
    assert measured.of_empty is None
    many = scenarios.Point(by_name["encoding-1"], by_name["encoding-1"].routes[0], 32)
    measured = measurement()
    readings = {
        name: runner.Reading(rate, 0.3)
        for name, rate in zip(runner.reference_names(many), (200.0, 125.0), strict=True)
    }
    runner.relate(many, measured, readings, readings)
    assert (measured.of_raw, measured.of_packed, measured.of_twin) == (0.5, 0.8, None)
    tiny = scenarios.Point(by_name["tiny"], by_name["tiny"].routes[0], 8)
    measured = measurement()
    (name,) = runner.reference_names(tiny)
    runner.relate(tiny, measured, {name: runner.Reading(400.0, 0.1)}, {name: runner.Reading(100.0, 0.3)})
    assert (measured.of_empty, measured.server_cpu_of_empty) == (0.4, 2.0)
    assert measured.of_raw is None


def test_json_has_every_round_and_no_word_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = a_run()
    run.bars = report.verdict_data(bars.judge(run.cells()))
    report.write_json(run, path)
    document = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    points = document["scenarios"][0]["points"]
    assert [each["of_raw"] for each in points[1]["rounds"]] == [0.80, 0.95, 0.93]
    assert points[0]["rounds"][0]["rate"] is None
    assert {"scenario": "encoding-1", "route": "grpc", "clients": 32, "metric": "of_raw", "limit": 0.92,
            "group": "", "measured": 0.93, "met": True} in document["bars"]  # fmt: skip


def test_markdown_shows_medians_bars_and_disturbance(tmp_path: Path) -> None:
    run = a_run()
    verdicts = [verdict for verdict in bars.judge(run.cells()) if verdict.met is not None]
    text = report.markdown(run, verdicts, [tmp_path / "chart.png"])
    assert "| encoding-1, grpc, 32 clients | throughput ÷ raw limit | ≥ 0.92 | 0.93 | met |" in text
    assert "| grpc | 32 | 100.0 | 0.93 |" in text
    assert "| grpc | 1 * |" in text
    assert "raw: 100.0 texts/s (2x1 threads, batches of 4, 10.00 CPU-s per 1,000)" in text
    assert "(chart.png)" in text


@pytest.mark.parametrize(
    ("value", "written"), [(None, "-"), (math.nan, "-"), (1234.5, "1,234"), (0.9, "0.90")]
)
def test_numbers_that_are_missing_or_large(value: float | None, written: str) -> None:
    assert table.number(value) == written
