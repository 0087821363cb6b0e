"""Two pictures of a run: throughput beside the limit, and the slowest answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.bars import BARS
from benchmarks.results import PointResult, RunResult, ScenarioResult

COLOURS: Final = ("#1f6f8b", "#e07a3f", "#7a9e58", "#8d6a9f")
_WIDTH: Final = 0.8
"""Share of the space of a group of columns that they fill."""

Value = Callable[[PointResult], float | None]


def draw(result: RunResult, stem: Path) -> list[Path]:
    """Draw the run's charts beside ``stem``; return their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    throughput = stem.with_name(f"{stem.name}-throughput.png")
    latency = stem.with_name(f"{stem.name}-p99.png")
    _chart(result.scenarios, throughput, "share of the reference", relative)
    _chart(result.scenarios, latency, "p99 latency, ms (log)", lambda point: point.median("p99_ms"), log=True)
    return [throughput, latency]


def relative(point: PointResult) -> float | None:
    """Return throughput beside its reference: for one client the one-at-a-time loop, else the raw limit."""
    for metric in ("of_twin", "of_raw", "of_empty"):
        value = point.median(metric)
        if value is not None:
            return value
    return None


def _chart(
    scenarios: Sequence[ScenarioResult], path: Path, label: str, value: Value, *, log: bool = False
) -> None:
    """Draw one panel a scenario: groups of columns by number of clients, a colour a route."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(scenarios), figsize=(1.2 + 3.6 * len(scenarios), 4.0), squeeze=False, layout="constrained"
    )
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        _panel(panel, scenario, value, log=log)
    axes[0][0].set_ylabel(label)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel, scenario: ScenarioResult, value: Value, *, log: bool) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    routes = list(dict.fromkeys(point.route for point in scenario.points))
    clients = sorted({point.clients for point in scenario.points})
    width = _WIDTH / len(routes)
    for number, route in enumerate(routes):
        heights = {point.clients: value(point) for point in scenario.points if point.route == route}
        drawn = {count: height for count, height in heights.items() if height is not None}
        places = [clients.index(count) + (number - (len(routes) - 1) / 2) * width for count in drawn]
        bars = panel.bar(places, list(drawn.values()), width * 0.92, color=COLOURS[number % 4], label=route)
        panel.bar_label(bars, fmt="%.3g" if log else "%.2f", fontsize=7, padding=1)
    if log:
        panel.set_yscale("log")
        panel.margins(y=0.15)
    else:
        panel.axhline(1.0, color="#444444", linewidth=0.8)
        for bar in BARS:
            if bar.scenario == scenario.name and not bar.upper and bar.clients in clients:
                middle = clients.index(bar.clients)
                panel.hlines(
                    bar.limit, middle - 0.45, middle + 0.45, colors="#b3261e", linestyles=":", linewidth=1.1
                )
        panel.margins(y=0.12)
    panel.set_xticks(range(len(clients)), [str(count) for count in clients])
    panel.set_xlabel("clients")
    reference = "of the empty handler" if scenario.name == "tiny" else "of the raw limit"
    panel.set_title(scenario.name if log else f"{scenario.name}: {reference}", fontsize=10)
    panel.legend(fontsize=7, loc="upper left" if log else "lower right", framealpha=0.85)
    panel.spines[["top", "right"]].set_visible(False)
