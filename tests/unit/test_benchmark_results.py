"""Generation benchmarks: ratios, bars, tables and charts of what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmark_import import ROOT, module

all_bars = module("bars")
bars = module("generation.bars")
charts = module("generation.charts")
overload = module("generation.overload")
registry = module("generation.peers.registry")
report = module("report")
results = module("generation.results")
runner = module("generation.runner")
runs = module("results")
scenarios = module("generation.scenarios")
table = module("generation.table")
workload = module("generation.workload")


def reading(rate: float, **changes: Any) -> Any:
    values = {
        "rate": rate, "decode_rate": 2 * rate, "ttft_ms": 1000 / rate, "itl_p50_ms": 1.0, "itl_p99_ms": 1.5,
        "cpu": {"server": 2.0, "envoy": 1.0}, "other_cores": 0.0, "load": 1.0,
    }  # fmt: skip
    return results.Reading(**{**values, **changes})


def a_result() -> Any:
    cells = {
        ("grpc", 8): [reading(90.0), reading(100.0), reading(math.nan, failed=1, errors=["gone"])],
        ("onnxruntime-genai", 8): [reading(100.0), reading(100.0), reading(100.0)],
        ("floor", 8): [reading(200.0, cpu={}), reading(200.0, cpu={}), reading(200.0, cpu={})],
    }
    for number in range(3):
        results.relate({name: rounds[number] for (name, _), rounds in cells.items()})
    points = [results.GenerationPoint(*key, rounds) for key, rounds in cells.items()]
    return results.GenerationResult(
        "generation-batch", "tokens", "batch", 2, "3 rounds", points, {"grpc": "typed"}, {"vllm": "no venv"}
    )


def test_ratios_are_taken_within_a_round_and_ignore_what_failed() -> None:
    medians = a_result().points[0].medians()
    assert medians["rate"] == 95.0
    assert medians["of onnxruntime-genai"] == pytest.approx(0.95)
    assert medians["decode_of floor"] == pytest.approx(0.475)
    assert medians["ttft_of onnxruntime-genai"] == pytest.approx((100 / 90 + 1) / 2)
    assert medians["server_cores"] == pytest.approx(0.2)
    assert medians["itl_spread"] == pytest.approx(1.5)
    assert medians["prefix_speedup"] is None
    assert a_result().points[0].failed == 1


def test_a_known_prefix_is_compared_with_a_new_one() -> None:
    metrics = reading(10.0, ttft_ms=50.0, cold_ttft_ms=300.0).metrics()
    assert metrics["prefix_speedup"] == pytest.approx(6.0)


def test_every_bar_names_a_point_that_is_measured_and_a_metric_that_exists() -> None:
    known = {
        (scenario.name, name, streams): scenario
        for scenario in scenarios.SCENARIOS
        for name in scenario.contenders
        for streams in scenario.streams
    }
    plain = {*reading(1.0).metrics(), "free_of_all", "next_of_before", "memory_growth"}
    for bar in bars.BARS:
        scenario = known[bar.scenario, bar.route, bar.clients]
        kind, _, other = bar.metric.partition(" ")
        assert bar.metric in plain or (
            kind in {"of", "decode_of", "ttft_of"} and other in scenario.contenders
        )
        assert bars.describe(bar.metric) != bar.metric
    assert len({(bar.scenario, bar.route, bar.clients, bar.metric, bar.limit) for bar in bars.BARS}) == len(
        bars.BARS
    )


def test_every_contender_is_known() -> None:
    names = {name for scenario in scenarios.SCENARIOS for name in scenario.contenders}
    assert names == {*registry.PEERS, *scenarios.EVERY_PATH}
    folder = ROOT / "benchmarks" / "generation" / "peers"
    for peer in registry.PEERS.values():
        assert len((folder / f"{peer.module}.py").read_text().splitlines()) <= 120


def test_quick_scenarios_keep_their_kind_and_ask_for_little() -> None:
    for scenario in scenarios.SCENARIOS:
        short = runner.shortened(scenario)
        assert (short.name, short.kind, short.contenders) == (
            scenario.name,
            scenario.kind,
            scenario.contenders,
        )
        assert workload.longest(short) <= workload.longest(scenario)


def a_run() -> Any:
    machine = {
        "cpu": "a processor", "cores": 2, "memory_gib": 4.0, "system": "Linux", "python": "3.11",
        "packages": {"numpy": "2"}, "revision": "abc", "modified": False,
    }  # fmt: skip
    options = {"rounds": 3, "seconds": 6.0}
    return runs.RunResult("2026-01-01T00:00:00+00:00", machine, options, generation=[a_result()])


def test_bars_of_generation_are_judged_with_the_others(tmp_path: Path) -> None:
    run = a_run()
    verdicts = {
        (each.bar.metric, each.bar.limit): each
        for each in all_bars.judge(run.cells(), bars.BARS)
        if (each.bar.route, each.bar.clients) == ("grpc", 8)
    }
    assert verdicts["of onnxruntime-genai", 0.95].met is True
    assert verdicts["server_cores", 0.15].met is False
    assert verdicts["of vllm", 1.0].met is None
    assert run.failed == 1
    text = report.markdown(run, list(verdicts.values()), [])
    assert (
        "| generation-batch, grpc, 8 streams | tokens/s ÷ onnxruntime-genai | ≥ 0.95 | 0.95 | met |" in text
    )
    assert "vllm was skipped: no venv" in text
    assert "grpc, 8 streams: gone" in text
    report.write_json(run, tmp_path / "run.json")
    document = json.loads((tmp_path / "run.json").read_text())
    rounds = document["generation"][0]["points"][0]["rounds"]
    assert [each["rate"] for each in rounds] == [90.0, 100.0, None]


def test_tables_leave_out_what_nobody_measured() -> None:
    section = table.section(a_result())
    assert "TTFT new" not in section.head
    assert all(len(row) == len(section.head) for row in section.rows)
    (row,) = (row for row in section.rows if row[0] == "grpc")
    assert row[section.head.index("÷ genai")] == "0.95"


def test_charts_are_drawn_for_rates_only(tmp_path: Path) -> None:
    (path,) = charts.draw([a_result()], tmp_path / "run")
    assert path.read_bytes().startswith(b"\x89PNG")
    other = a_result()
    other.kind = "prefix"
    assert charts.draw([other], tmp_path / "other") == []


def test_samples_of_a_family_are_summed() -> None:
    text = '# HELP a_b text\na_b{model="x"} 3\na_b{model="y"} 4.0\na_b_total 9\na 1\n'
    assert overload.sample_sum(text, "a_b") == 7.0
    assert overload.sample_sum(text, "a") == 1.0
    with pytest.raises(RuntimeError, match="no metric c"):
        overload.sample_sum(text, "c")
