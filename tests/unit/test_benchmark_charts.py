"""Charts of benchmarks: what a run of many peers asks of a legend."""

from __future__ import annotations

from pathlib import Path

from benchmark_import import module

charts = module("charts")
results = module("results")


def test_a_legend_of_all_peers_stays_within_a_narrow_picture(tmp_path: Path) -> None:
    """A cut-off legend leaves ink on the picture's left and right edges, which are blank otherwise."""
    from matplotlib import pyplot as plt

    names = ["grpc", "rest", "triton", "triton-deep", "mlserver", "kserve", "kserve-deep", "infinity"]
    rounds = [results.Measurement(100.0, 1.0, 2.0, {}, 1.0, 0.0)]
    points = [results.PointResult(name, 1, rounds, peer=place > 1) for place, name in enumerate(names)]
    scenario = results.ScenarioResult("encoding-32", "texts", "texts", 32, [], points, "verified")
    for path in charts.draw(
        results.RunResult("2026-01-01T00:00:00+00:00", {}, {}, [scenario]), tmp_path / "run"
    ):
        picture = plt.imread(path)[:, :, :3]
        assert picture[:, :2].min() == 1.0
        assert picture[:, -2:].min() == 1.0
        assert picture[:, : picture.shape[1] // 4].min() < 0.5  # drawn at all
