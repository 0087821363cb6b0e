"""Runs generation scenarios for the command line: what is chosen, a line of progress, the table."""

from __future__ import annotations

import typer
from rich.console import Console

from benchmarks import table
from benchmarks.generation.contenders import Options
from benchmarks.generation.runner import GenerationRun, shortened
from benchmarks.generation.scenarios import Scenario
from benchmarks.generation.table import section
from benchmarks.results import RunResult


def run(
    console: Console,
    scenario: Scenario,
    contenders: list[str] | None,
    streams: list[int] | None,
    options: Options,
    result: RunResult,
    *,
    quick: bool,
) -> None:
    """Run one scenario and add it to ``result``; nothing happens when nothing of it is chosen.

    Raises:
        typer.Exit: the server does not start, or a contender fails.
    """
    chosen = shortened(scenario) if quick else scenario
    names = [name for name in chosen.contenders if not contenders or name in contenders]
    counts = [count for count in chosen.streams if not streams or count in streams]
    if not names or not counts:
        return
    with console.status(scenario.name) as status:
        try:
            done = GenerationRun(
                chosen,
                names,
                counts,
                options,
                lambda what: status.update(f"[bold]{scenario.name}[/bold] {what}"),
            ).run()
        except (RuntimeError, TimeoutError) as error:
            status.stop()
            console.print(f"{scenario.name}: {error}", style="red", markup=False)
            raise typer.Exit(2) from None
    result.generation.append(done)
    table.show(console, section(done))
