"""Runs the soak for the command line: a line of progress, the table, and its bars."""

from __future__ import annotations

from typing import Final

import typer
from rich.console import Console

from benchmarks import table
from benchmarks.bars import Bar
from benchmarks.results import RunResult
from benchmarks.runner import Options
from benchmarks.soak.plan import EVERYBODY, PLAN, Plan
from benchmarks.soak.run import run as soak
from benchmarks.soak.table import section
from benchmarks.soak.tally import Tally
from benchmarks.verify import WrongAnswerError

BARS: Final = tuple(
    Bar(PLAN.name, EVERYBODY, PLAN.callers, metric, limit)
    for metric, limit in (
        ("rss_growth", 1.05),
        ("server_rss_growth", 1.05),
        ("unanswered", 0.0),
        ("failed", 0.0),
    )
)
TELL_SECONDS: Final = 60.0
"""Between lines of progress where there is no terminal to rewrite one on."""


def run(console: Console, plan: Plan, options: Options, minutes: float, result: RunResult) -> None:
    """Run the soak and add it to ``result``.

    Raises:
        typer.Exit: the server does not start, its answers are wrong, or the callers hang.
    """
    told = 0.0
    with console.status(plan.name) as status:

        def progress(seconds: float, tally: Tally, memory: dict[str, float]) -> None:
            nonlocal told
            sizes = ", ".join(f"{name} {size:,.0f}" for name, size in memory.items())
            line = (
                f"{seconds / 60.0:.1f} of {minutes:g} min: {tally.answered:,} answered, "
                f"{tally.refused.total():,} refused, {tally.left:,} left, {tally.failed.total():,} failed, "
                f"{tally.unanswered:,} unanswered; MiB {sizes}"
            )
            status.update(line)
            if not console.is_terminal and seconds >= told:
                console.print(line, highlight=False)
                told += TELL_SECONDS

        try:
            done = soak(plan, options.repository, options.folder, options.arguments, minutes, progress)
        except (RuntimeError, TimeoutError, WrongAnswerError) as error:
            status.stop()
            console.print(f"{plan.name}: {error}", style="red", markup=False)
            raise typer.Exit(2) from None
    result.soak.append(done)
    table.show(console, section(done))
