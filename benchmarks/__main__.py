"""Command line of the benchmarks."""

from __future__ import annotations

import datetime as dt
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import bars, charts, machine, report, table
from benchmarks.generation import bars as generation_bars
from benchmarks.generation import charts as generation_charts
from benchmarks.generation import command as generation
from benchmarks.generation.contenders import Options as GenerationOptions
from benchmarks.generation.scenarios import SCENARIOS as GENERATION
from benchmarks.generation.scenarios import Scenario as GenerationScenario
from benchmarks.results import RunResult
from benchmarks.runner import Options, ScenarioRun
from benchmarks.scenarios import SCENARIOS, Point, Scenario, points
from benchmarks.soak import chart as soak_chart
from benchmarks.soak import command as soak
from benchmarks.soak.plan import PLAN, Plan
from benchmarks.verify import WrongAnswerError

HERE = Path(__file__).parent
WIDTH = 170
"""Columns of the tables where there is no terminal to ask."""


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this scenario, or all of this family; may be repeated.")
    ] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="Only this route or contender; may be repeated.")
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option(help="Only this many clients or streams; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2 s a point, one round: to see that it works.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="Seconds of each point; 6 unless set.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Times that each point is measured; 3, of generation 5, unless set.")
    ] = None,
    peers: Annotated[
        Path,
        typer.Option(help="What `python -m benchmarks.encoding.peers` and `….generation.peers` made."),
    ] = Path(".cache/peers"),
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path(".cache/demo"),
    results: Annotated[Path, typer.Option(help="Folder for JSON, report and charts.")] = HERE / "results",
    serve: Annotated[
        list[str] | None, typer.Option(help="Further flag of `headrace serve`; may be repeated.")
    ] = None,
    beside: Annotated[
        bool,
        typer.Option("--beside", help="Compare with peers only: all in turn, 1.5 s a point, ten rounds."),
    ] = False,
    minutes: Annotated[float, typer.Option(help="Length of the soak, which runs only if named.")] = 30.0,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 if a bar is missed or not measured, or a request fails.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the scenarios and stop.")] = False,
) -> None:
    """Measure a running Headrace beside what the machine allows."""
    # Ended from outside, too, the server and the loops must not be left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    chosen = _chosen(only)
    if show_list:
        for scenario in chosen:
            _describe(console, scenario)
        return
    length = seconds or (2.0 if quick else 1.5 if beside else 6.0)
    times = rounds or (1 if quick else 10 if beside else 3)
    started = dt.datetime.now(dt.UTC)
    result = RunResult(
        started.isoformat(timespec="seconds"),
        machine.facts(),
        {"seconds": length, "rounds": times, "quick": quick, "serve": list(serve or ())},
    )
    results.mkdir(parents=True, exist_ok=True)
    stem = results / f"{started:%Y%m%d-%H%M%S}-{machine.device()}"
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        options = Options(
            repository.resolve(), length, times, 0.5 if quick or beside else 1.0, 0.6 if quick else 1.5,
            Path(folder), peers.resolve(), tuple(serve or ()), beside,
        )  # fmt: skip
        generation_options = GenerationOptions(
            repository.resolve(),
            peers.resolve(),
            rounds or (1 if quick else 5),
            Path(folder),
            tuple(serve or ()),
        )
        for scenario in chosen:
            if isinstance(scenario, Plan):
                soak.run(console, scenario, options, minutes, result)
                report.write_json(result, stem.with_suffix(".json"))
                continue
            if isinstance(scenario, GenerationScenario):
                generation.run(console, scenario, route, clients, generation_options, result, quick=quick)
                report.write_json(result, stem.with_suffix(".json"))
                continue
            cells = [point for point in points(scenario) if _wanted(point, route, clients)]
            if cells:
                _run(console, scenario, cells, options, result)
                report.write_json(result, stem.with_suffix(".json"))
    _finish(console, result, stem, check=check)


def _chosen(only: list[str] | None) -> list[Scenario | GenerationScenario | Plan]:
    """Return the scenarios that are named; a family is the part of a name before its first dash."""
    known: dict[str, Scenario | GenerationScenario | Plan] = {
        each.name: each for each in (*SCENARIOS, *GENERATION, PLAN)
    }
    for name in only or ():
        if name not in known and not any(each.split("-")[0] == name for each in known):
            raise typer.BadParameter(f"there is no scenario '{name}'; there are {', '.join(known)}")
    return [
        scenario
        for name, scenario in known.items()
        if (name in only or name.split("-")[0] in only if only else scenario is not PLAN)
    ]


def _describe(console: Console, scenario: Scenario | GenerationScenario | Plan) -> None:
    console.print(f"[bold]{scenario.name}[/bold]  {scenario.title}")
    if isinstance(scenario, Plan):
        return
    if isinstance(scenario, GenerationScenario):
        console.print(
            f"    {', '.join(map(str, scenario.streams))} streams: {', '.join(scenario.contenders)}"
        )
        return
    for each in scenario.routes:
        console.print(f"    {each.name}: {', '.join(map(str, each.concurrency))} clients")
    if scenario.peers:
        clients = ", ".join(map(str, scenario.peer_clients))
        console.print(f"    {', '.join(scenario.peers)}: {clients} clients")


def _wanted(point: Point, routes: list[str] | None, clients: list[int] | None) -> bool:
    return (not routes or point.route.name in routes) and (not clients or point.clients in clients)


def _run(
    console: Console, scenario: Scenario, cells: list[Point], options: Options, result: RunResult
) -> None:
    """Run one scenario with a line of progress, and print its table."""
    bar = Progress(
        TextColumn("[bold]{task.fields[scenario]}[/bold] {task.description}"),
        BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=len(cells) * options.rounds, scenario=scenario.name)
        measured = -1

        def progress(what: str) -> None:
            nonlocal measured
            if not what.startswith(("reference", "search", "start")):
                measured += 1
            bar.update(task, description=what, completed=max(0, measured))

        try:
            done = ScenarioRun(scenario, cells, options, progress).run()
        except (RuntimeError, WrongAnswerError) as error:
            bar.stop()
            console.print(f"{scenario.name}: {error}", style="red", markup=False)
            raise typer.Exit(2) from None
    result.scenarios.append(done)
    table.show(console, table.section(done))


def _finish(console: Console, result: RunResult, stem: Path, *, check: bool) -> None:
    """Judge, write the files and say where they are."""
    every = (*bars.BARS, *generation_bars.BARS, *soak.BARS)
    judged = list(bars.judge(result.cells(), every))
    verdicts = [verdict for verdict in judged if verdict.met is not None]
    result.bars = report.verdict_data(verdicts)
    if verdicts:
        table.show_verdicts(console, verdicts)
    report.write_json(result, stem.with_suffix(".json"))
    pictures = charts.draw(result, stem) if result.scenarios else []
    pictures += generation_charts.draw(result.generation, stem)
    pictures += soak_chart.draw(result.soak, stem)
    stem.with_suffix(".md").write_text(report.markdown(result, verdicts, pictures), encoding="utf-8")
    console.print(f"{stem}.json, .md and charts", highlight=False)
    if not check:
        return
    missing = [verdict for verdict in judged if verdict.met is None and not verdict.excused]
    if missing:
        table.show_verdicts(console, missing)
    if result.failed or not all(verdict.met or verdict.excused for verdict in judged):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
