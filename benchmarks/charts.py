"""Two pictures of a run: throughput beside the limit, and the slowest answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from benchmarks.bars import BARS
from benchmarks.results import PointResult, RunResult, ScenarioResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = ("#1f6f8b", "#e07a3f", "#7a9e58", "#8d6a9f")
_OURS: Final = ("#1f6f8b", "#7fbcd2", "#123f52", "#a9c1dd", "#4a6fa5")
_PEERS: Final = ("#e07a3f", "#f2b48c", "#7a9e58", "#8d6a9f", "#c3a9d1", "#c9a227", "#a65d57", "#9a9a9a")
ROW_INCHES: Final = 15.0
LEGEND_INCHES: Final = 1.25
"""What the longest name of a route takes in a legend, its colour and the space after it included."""
BAR_COLOUR: Final = "#b3261e"
_SHOWN: Final = ("of_twin", "of_raw", "of_empty")
_WIDTH: Final = 0.8
"""Share of the space of a group of columns that they fill."""

Entry = TypeVar("Entry")


def draw(result: RunResult, stem: Path) -> list[Path]:
    """Draw the run's charts beside ``stem``; return their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    throughput = stem.with_name(f"{stem.name}-throughput.png")
    latency = stem.with_name(f"{stem.name}-p99.png")
    shown = [scenario for scenario in result.scenarios if scenario.points]
    title = (
        (
            "Throughput beside its reference: the raw limit;\n"
            "for one client the one-at-a-time loop; for tiny the empty handler"
        )
        if any(map(_has_reference, shown))
        else "Throughput"
    )
    _chart(shown, throughput, title)
    _chart(shown, latency, "p99 latency, ms", log=True)
    return [throughput, latency]


def _has_reference(scenario: ScenarioResult) -> bool:
    """Whether there is something to relate throughput to; runs beside peers only have nothing."""
    return any(relative(point) is not None for point in scenario.points)


def relative(point: PointResult) -> float | None:
    """Return throughput beside its reference: for one client the one-at-a-time loop, else the raw limit."""
    for metric in _SHOWN:
        value = point.median(metric)
        if value is not None:
            return value
    return None


def _limits(scenario: str, point: PointResult) -> list[float]:
    """Return the bars on what :func:`relative` shows of a point."""
    metric = next((name for name in _SHOWN if point.median(name) is not None), None)
    place = (scenario, point.route, point.clients, metric)
    return [bar.limit for bar in BARS if (bar.scenario, bar.route, bar.clients, bar.metric) == place]


def _chart(scenarios: Sequence[ScenarioResult], path: Path, title: str, *, log: bool = False) -> None:
    """Draw one panel a scenario: groups of columns by number of clients, a colour a route.

    They are throughput beside its reference, or throughput itself where there is none; with ``log`` p99
    latency.
    """
    from matplotlib import pyplot as plt
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    colours = _colours(scenarios)
    rows = arrange(scenarios, [_width(scenario) for scenario in scenarios])
    widest = max((sum(map(_width, row)) for row in rows), default=0.0)
    figure = plt.figure(figsize=(max(7.0, widest + 1.0), 3.6 * len(rows) + 0.6), layout="constrained")
    for strip, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes = strip.subplots(1, len(row), squeeze=False, width_ratios=[_width(scenario) for scenario in row])
        for panel, scenario in zip(axes[0], row, strict=True):
            _panel(panel, scenario, colours, log=log)
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    labels = list(colours)
    if not log and any(map(_has_reference, scenarios)):
        handles.append(Line2D([], [], color=BAR_COLOUR, linewidth=2))
        labels.append("bar")
    columns = max(1, int(figure.get_figwidth() / LEGEND_INCHES))  # a legend that is too wide is cut off
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def arrange(entries: Sequence[Entry], widths: Sequence[float], row: float = ROW_INCHES) -> list[list[Entry]]:
    """Put as many entries of ``widths`` inches beside each other as there is room for in ``row`` inches."""
    rows: list[list[Entry]] = []
    left = 0.0
    for entry, width in zip(entries, widths, strict=True):
        if not rows or width > left:
            rows.append([])
            left = row
        rows[-1].append(entry)
        left -= width
    return rows


def _width(scenario: ScenarioResult) -> float:
    """Return the inches that a panel needs."""
    return max(2.0, 0.42 * len(scenario.points) + 0.9)


def _colours(scenarios: Sequence[ScenarioResult]) -> dict[str, str]:
    """Give every route a colour, ours shades of one."""
    points = [point for scenario in scenarios for point in scenario.points]
    ours = dict.fromkeys(point.route for point in points if not point.peer)
    peers = dict.fromkeys(point.route for point in points if point.peer)
    return {
        **{route: _OURS[index % len(_OURS)] for index, route in enumerate(ours)},
        **{route: _PEERS[index % len(_PEERS)] for index, route in enumerate(peers)},
    }


def _panel(panel: Axes, scenario: ScenarioResult, colours: Mapping[str, str], *, log: bool) -> None:
    related = not log and _has_reference(scenario)
    clients = sorted({point.clients for point in scenario.points})
    width = _WIDTH / max(1, *(sum(point.clients == count for point in scenario.points) for count in clients))
    for group, count in enumerate(clients):
        points = [point for point in scenario.points if point.clients == count]
        for number, point in enumerate(points):
            height = relative(point) if related else point.median("p99_ms") if log else point.median("rate")
            if height is None:
                continue
            place = group + (number - (len(points) - 1) / 2) * width
            drawn = panel.bar(place, height, width * 0.92, color=colours[point.route])
            label = f"{height:,.0f}" if height >= 100 else f"{height:.{2 if related else 1}f}"
            panel.bar_label(drawn, [label], fontsize=7, padding=1)
            for limit in () if log else _limits(scenario.name, point):
                panel.hlines(limit, place - width / 2, place + width / 2, colors=BAR_COLOUR, linewidth=2)
    if log:
        panel.set_yscale("log")
        panel.margins(y=0.15)
    else:
        if related:
            panel.axhline(1.0, color="#444444", linewidth=0.8, zorder=0)
        panel.margins(y=0.1)
    panel.set_xticks(range(len(clients)), [str(count) for count in clients])
    panel.set_xlabel("clients")
    unit = "" if log or related else f", {scenario.unit}/s"
    panel.set_title(scenario.name + unit, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
