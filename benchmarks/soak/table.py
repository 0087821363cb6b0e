"""The table of a soak."""

from __future__ import annotations

from statistics import median

from benchmarks.soak.results import SoakResult
from benchmarks.table import Section, number


def section(result: SoakResult) -> Section:
    """Lay a soak out: memory by group of processes, what became of requests below it."""
    rows = [
        _row(result, name, values) for name, values in [*result.rss.items(), ("together", result.total())]
    ]
    became = ", ".join(f"{count:,} {what}" for what, count in result.counts.items())
    refused = ", ".join(f"{count:,} {status}" for status, count in sorted(result.refused.items()))
    there = f"{result.workers_left} of {result.workers} are there in the end"
    notes = [
        f"{result.minutes:g} minutes, {result.callers} callers and bursts; {became}",
        f"refused: {refused or 'none'}",
        f"{len(result.kills)} workers were killed, {there}",
        result.verified,
        f"memory (RSS, MiB): medians of quarters of the time after the first {result.warmup:.0%}",
    ]
    head = ["processes", "first quarter", "last quarter", "last ÷ first", "most"]
    return Section(result.name, result.title, head, rows, notes, result.errors)


def _row(result: SoakResult, name: str, values: list[float]) -> list[str]:
    after = values[int(len(values) * result.warmup) :]
    quarter = max(1, len(after) // 4)
    return [
        name,
        number(median(after[:quarter]) if after else None, 0),
        number(median(after[-quarter:]) if after else None, 0),
        number(result.growth(values), 3),
        number(max(values, default=None), 0),
    ]
