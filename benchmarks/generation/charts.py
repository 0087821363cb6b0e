"""Pictures of generation scenarios: tokens a second by streams, a colour a contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.charts import COLOURS, arrange
from benchmarks.generation.peers.registry import FLOOR
from benchmarks.generation.results import GenerationResult
from benchmarks.generation.scenarios import EVERY_PATH, GRPC, SSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS: Final = (COLOURS[0], "#5aa9c2", "#12465a", "#8fc7d9", "#3d5a80", "#7a9cc6", "#26547c", "#a9c1dd")
_OTHERS: Final = (*COLOURS[1:], "#c9a227", "#a65d57", "#9a9a9a", "#6f7f8f")
FLOOR_COLOUR: Final = "#444444"
_WIDTH: Final = 0.84
ROW_INCHES: Final = 11.0
Medians = Mapping[tuple[str, int], float]


def draw(results: Sequence[GenerationResult], stem: Path) -> list[Path]:
    """Draw the scenarios that compare rates beside ``stem``; return the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    shown = [result for result in results if result.kind in {"batch", "mixed"} and result.points]
    if not shown:
        return []
    path = stem.with_name(f"{stem.name}-generation.png")
    _chart(shown, path)
    return [path]


def _chart(results: Sequence[GenerationResult], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    colours = _colours(results)
    rows = arrange(results, [_width(result) for result in results], ROW_INCHES)
    figure = plt.figure(figsize=(ROW_INCHES, 3.4 * len(rows) + 0.9), layout="constrained")
    for strip, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes = strip.subplots(1, len(row), squeeze=False, width_ratios=[_width(result) for result in row])
        for panel, result in zip(axes[0], row, strict=True):
            _panel(panel, result, colours)
        axes[0][0].set_ylabel("output tokens/s, prompts included")
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    labels = list(colours)
    if any(point.contender == FLOOR for result in results for point in result.points):
        handles.append(Line2D([], [], color=FLOOR_COLOUR, linewidth=2))
        labels.append("what memory and arithmetic allow in fp32")
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=8
    )
    figure.suptitle("Text generation, medians of interleaved rounds", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _width(result: GenerationResult) -> float:
    """Return the inches that a panel needs."""
    return max(2.2, 0.21 * len(result.points) + 0.9)


def _colours(results: Sequence[GenerationResult]) -> dict[str, str]:
    """Give every contender a colour, ours shades of one."""
    names = dict.fromkeys(point.contender for result in results for point in result.points)
    first = {GRPC: 0, SSE: 1}
    ours = sorted((name for name in names if name in EVERY_PATH), key=lambda name: first.get(name, 2))
    others = [name for name in names if name not in EVERY_PATH and name != FLOOR]
    return {
        **dict(zip(ours, _OURS, strict=False)),
        **{name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)},
    }


def _panel(panel: Axes, result: GenerationResult, colours: Mapping[str, str]) -> None:
    medians: Medians = {
        (point.contender, point.streams): rate
        for point in result.points
        if (rate := point.medians().get("rate")) is not None
    }
    groups = sorted({streams for _, streams in medians})
    names = [name for name in colours if any(contender == name for contender, _ in medians)]
    width = _WIDTH / max(1, len(names))
    for group, streams in enumerate(groups):
        for number, name in enumerate(names):
            height = medians.get((name, streams))
            if height is None:
                continue
            place = group + (number - (len(names) - 1) / 2) * width
            drawn = panel.bar(place, height, width * 0.92, color=colours[name])
            panel.bar_label(drawn, [f"{height:,.0f}"], fontsize=6, padding=1, rotation=90)
        limit = medians.get((FLOOR, streams))
        if limit is not None:
            panel.hlines(limit, group - _WIDTH / 2, group + _WIDTH / 2, colors=FLOOR_COLOUR, linewidth=2)
    panel.margins(y=0.12)
    panel.set_xticks(range(len(groups)), [str(streams) for streams in groups])
    panel.set_xlabel("streams")
    panel.set_title(result.name, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
