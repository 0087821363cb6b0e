"""The tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Verdict
from benchmarks.estimates import middle
from benchmarks.generation.bars import describe
from benchmarks.results import CPU_GROUPS, PointResult, ScenarioResult

METRIC_NAMES = {
    "of_raw": "throughput ÷ raw limit",
    "of_twin": "throughput ÷ one-at-a-time loop",
    "server_cpu_of_empty": "server CPU ÷ empty grpc.aio handler",
    "of_peers": "throughput ÷ fastest peer",
    "p99_of_peers": "p99 ÷ best peer",
    "rss_growth": "memory at the end ÷ after warming up",
    "server_rss_growth": "the server's own memory, the same",
    "unanswered": "requests without an answer",
    "failed": "requests that failed",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A scenario laid out: a table, notes below it, and what went wrong."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    errors: Sequence[str]


def section(scenario: ScenarioResult) -> Section:
    """Lay a scenario out."""
    errors = [
        f"{point.route}, {point.clients} clients: {error}"
        for point in scenario.points
        for error in next((each.errors for each in point.rounds if each.errors), [])[:1]
    ]
    rows = [cells(scenario, point) for point in scenario.points]
    return Section(scenario.name, scenario.title, columns(scenario), rows, notes(scenario), errors)


def number(value: float | None, digits: int = 2) -> str:
    """Write a number that may not be there."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def columns(scenario: ScenarioResult) -> list[str]:
    """Return the table's head."""
    relations = [label for label, _ in relations_of(scenario)]
    cpu = [f"CPU {group}" for group in _groups(scenario)]
    return ["route", "clients", f"{scenario.unit}/s", *relations, "p50 ms", "p99 ms", *cpu, "failed"]


def relations_of(scenario: ScenarioResult) -> list[tuple[str, str]]:
    """Return (head, metric) of the ratios that a scenario has."""
    known = (
        ("÷ raw", "of_raw"),
        ("÷ packed", "of_packed"),
        ("CPU ÷ raw", "cpu_of_raw"),
        ("÷ one by one", "of_twin"),
        ("÷ empty", "of_empty"),
        ("server CPU ÷ empty", "server_cpu_of_empty"),
        ("÷ best peer", "of_peers"),
        ("p99 ÷ best", "p99_of_peers"),
    )
    return [
        (label, metric)
        for label, metric in known
        if any(point.median(metric) is not None for point in scenario.points)
    ]


def cells(scenario: ScenarioResult, point: PointResult) -> list[str]:
    """Return one row of the table."""
    return [
        point.route,
        f"{point.clients}{' *' if point.disturbed else ''}",
        number(point.median("rate"), 1),
        *(number(point.median(metric)) for _, metric in relations_of(scenario)),
        number(point.median("p50_ms"), 1),
        number(point.median("p99_ms"), 1),
        *(number(point.cpu(group)) for group in _groups(scenario)),
        str(point.failed),
    ]


def _groups(scenario: ScenarioResult) -> list[str]:
    """Return the groups of processes that anybody has."""
    peers = any(point.peer for point in scenario.points)
    return [group for group in CPU_GROUPS if peers or group != "peer"]


def show(console: Console, section: Section) -> None:
    """Print a scenario."""
    table = Table(
        title=f"{section.name}: {section.title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for index, head in enumerate(section.head):
        table.add_column(head.replace(" ", "\n", 1), justify="left" if index == 0 else "right", no_wrap=True)
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}", highlight=False, markup=False)
    for error in section.errors:
        console.print(f"  {error}", style="red", markup=False)
    console.print()


def notes(scenario: ScenarioResult) -> list[str]:
    """Say what the references were and how CPU is counted."""
    lines = []
    for reference in scenario.references:
        cpu = middle(reference.cpu)
        cost = "" if cpu is None else f", {number(cpu)} CPU-s per 1,000"
        rate = f"{number(reference.rate, 1)} {scenario.unit}/s"
        lines.append(f"{reference.name}: {rate} ({reference.setup}{cost})")
    lines.append("CPU: seconds per 1,000 requests; CPU ÷ raw: all processes and the client, per item")
    if any(point.disturbed for point in scenario.points):
        lines.append("*: something else kept over 5 % of a core busy")
    lines.append(scenario.verified)
    lines += [f"{name}: {title}" for name, title in scenario.titles.items()]
    lines += [f"{name} was skipped: {reason}" for name, reason in scenario.skipped.items()]
    return lines


def verdict_cells(verdict: Verdict) -> list[str]:
    """Return one row of the table of bars."""
    bar = verdict.bar
    generation = bar.scenario.startswith("generation-")
    unit = "stream" if generation else "client"
    word = {True: "met", False: "missed", None: "not measured"}[verdict.met]
    return [
        f"{bar.scenario}, {bar.route}, {bar.clients} {unit}{'s' if bar.clients > 1 else ''}",
        describe(bar.metric) if generation else METRIC_NAMES[bar.metric],
        f"{'≤' if bar.upper else '≥'} {bar.limit:.2f}",
        number(verdict.value),
        word,
    ]


def show_verdicts(console: Console, verdicts: Iterable[Verdict]) -> None:
    """Print the bars."""
    table = Table(
        "where", "what", "bar", "measured", "", title="Bars", title_justify="left", box=box.SIMPLE_HEAD
    )
    styles = {True: "green", False: "red", None: "dim"}
    for verdict in verdicts:
        table.add_row(*verdict_cells(verdict), style=styles[verdict.met])
    console.print(table)
