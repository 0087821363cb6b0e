"""A picture of a soak: memory of each group of processes over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.charts import BAR_COLOUR, COLOURS
from benchmarks.soak.results import SoakResult

TOGETHER: Final = "#444444"
KILL_COLOUR: Final = "#9a9a9a"


def draw(results: Sequence[SoakResult], stem: Path) -> list[Path]:
    """Draw the soaks beside ``stem``; return the files."""
    if not results:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    path = stem.with_name(f"{stem.name}-soak.png")
    _chart(results[0], path)
    return [path]


def _chart(result: SoakResult, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(9.0, 4.4), layout="constrained")
    minutes = [second / 60.0 for second in result.seconds]
    groups = [*result.rss.items(), ("together", result.total())]
    colours = [*COLOURS[: len(groups) - 1], TOGETHER]
    for (name, values), colour in zip(groups, colours, strict=True):
        panel.plot(minutes, values, color=colour, linewidth=1.2, label=name)
    for number, second in enumerate(result.kills):
        label = "a worker is killed" if number == 0 else None
        panel.axvline(second / 60.0, color=KILL_COLOUR, linewidth=0.8, linestyle=":", label=label)
    total = result.total()
    after = total[int(len(total) * result.warmup) :]
    if quarter := len(after) // 4:
        limit = sorted(after[:quarter])[quarter // 2] * 1.05
        start = minutes[len(minutes) - len(after)]
        panel.hlines(limit, start, minutes[-1], colors=BAR_COLOUR, linewidth=1.5, label="bar, together")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("minutes")
    panel.set_ylabel("resident memory, MiB")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    figure.suptitle(f"{result.name}: {result.title}", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
