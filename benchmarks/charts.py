"""Two pictures of a run: throughput beside the limit, and the slowest answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.bars import BARS
from benchmarks.results import PointResult, RunResult, ScenarioResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = ("#1f6f8b", "#e07a3f", "#7a9e58", "#8d6a9f")
BAR_COLOUR: Final = "#b3261e"
_WIDTH: Final = 0.8
"""Share of the space of a group of columns that they fill."""

Value = Callable[[PointResult], float | None]


def draw(result: RunResult, stem: Path) -> list[Path]:
    """Draw the run's charts beside ``stem``; return their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    throughput = stem.with_name(f"{stem.name}-throughput.png")
    latency = stem.with_name(f"{stem.name}-p99.png")
    title = (
        "Throughput beside its reference: the raw limit;\n"
        "for one client the one-at-a-time loop; for tiny the empty handler"
    )
    _chart(result.scenarios, throughput, title, relative)
    _chart(result.scenarios, latency, "p99 latency, ms", lambda point: point.median("p99_ms"), log=True)
    return [throughput, latency]


def relative(point: PointResult) -> float | None:
    """Return throughput beside its reference: for one client the one-at-a-time loop, else the raw limit."""
    for metric in ("of_twin", "of_raw", "of_empty"):
        value = point.median(metric)
        if value is not None:
            return value
    return None


def _chart(
    scenarios: Sequence[ScenarioResult], path: Path, title: str, value: Value, *, log: bool = False
) -> None:
    """Draw one panel a scenario: groups of columns by number of clients, a colour a route."""
    from matplotlib import pyplot as plt
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    routes = list(dict.fromkeys(point.route for scenario in scenarios for point in scenario.points))
    columns = [max(2.0, 0.42 * len(scenario.points) + 0.9) for scenario in scenarios]
    figure, axes = plt.subplots(
        1, len(scenarios), figsize=(max(7.0, sum(columns) + 1.0), 4.2), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": columns},
    )  # fmt: skip
    for panel, scenario in zip(axes[0], scenarios, strict=True):
        _panel(panel, scenario, routes, value, log=log)
    handles: list[Artist] = [
        Rectangle((0, 0), 1, 1, color=COLOURS[index % 4]) for index in range(len(routes))
    ]
    labels = list(routes)
    if not log:
        handles.append(Line2D([], [], color=BAR_COLOUR, linewidth=2))
        labels.append("bar")
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Axes, scenario: ScenarioResult, routes: list[str], value: Value, *, log: bool) -> None:
    clients = sorted({point.clients for point in scenario.points})
    width = _WIDTH / max(1, *(sum(point.clients == count for point in scenario.points) for count in clients))
    for group, count in enumerate(clients):
        points = [point for point in scenario.points if point.clients == count]
        for number, point in enumerate(points):
            height = value(point)
            if height is None:
                continue
            place = group + (number - (len(points) - 1) / 2) * width
            drawn = panel.bar(place, height, width * 0.92, color=COLOURS[routes.index(point.route) % 4])
            label = f"{height:,.0f}" if height >= 100 else f"{height:.2f}" if not log else f"{height:.1f}"
            panel.bar_label(drawn, [label], fontsize=7, padding=1)
            if not log:
                for bar in BARS:
                    if (bar.scenario, bar.route, bar.clients, bar.upper) == (
                        scenario.name,
                        point.route,
                        count,
                        False,
                    ):
                        panel.hlines(
                            bar.limit, place - width / 2, place + width / 2, colors=BAR_COLOUR, linewidth=2
                        )
    if log:
        panel.set_yscale("log")
        panel.margins(y=0.15)
    else:
        panel.axhline(1.0, color="#444444", linewidth=0.8, zorder=0)
        panel.margins(y=0.1)
    panel.set_xticks(range(len(clients)), [str(count) for count in clients])
    panel.set_xlabel("clients")
    panel.set_title(scenario.name, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
