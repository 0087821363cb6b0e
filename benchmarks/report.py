"""The files of a run: JSON for programs, Markdown for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import Verdict
from benchmarks.generation.table import section as generation_section
from benchmarks.results import RunResult
from benchmarks.soak.table import section as soak_section
from benchmarks.table import section, verdict_cells

SCHEMA = 1


def write_json(result: RunResult, path: Path) -> None:
    """Write the whole run: every round, every candidate of the raw limit, the machine."""
    document = {"schema": SCHEMA, **dataclasses.asdict(result)}
    path.write_text(json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def verdict_data(verdicts: Iterable[Verdict]) -> list[dict[str, object]]:
    """Return verdicts as JSON can hold them."""
    return [
        {**dataclasses.asdict(verdict.bar), "measured": verdict.value, "met": verdict.met}
        for verdict in verdicts
    ]


def markdown(result: RunResult, verdicts: Sequence[Verdict], charts: Sequence[Path]) -> str:
    """Render a run as Markdown."""
    machine = result.machine
    packages = machine["packages"]
    versions = (
        ", ".join(f"{name} {version}" for name, version in packages.items())
        if isinstance(packages, dict)
        else ""
    )
    changed = " with changes" if machine["modified"] else ""
    options = result.options
    facts = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['system']}; "
        f"Python {machine['python']}; {versions}; revision {machine['revision']}{changed}."
    )
    method = (
        f"{options['rounds']} rounds of {options['seconds']} s a point; ratios are medians over the rounds, "
        "each related to its references right before and after it."
    )
    lines = [f"# Benchmarks of {result.started}", "", facts, ""]
    if result.scenarios:
        lines += [method, ""]
    if verdicts:
        lines += [
            "## Bars",
            "",
            *_rows(["where", "what", "bar", "measured", ""], map(verdict_cells, verdicts)),
            "",
        ]
    lines += [f"![{chart.stem}]({chart.name})" for chart in charts]
    parts = (
        *map(section, result.scenarios), *map(generation_section, result.generation),
        *map(soak_section, result.soak),
    )  # fmt: skip
    for part in parts:
        lines += ["", f"## {part.name}: {part.title}", "", *_rows(part.head, part.rows)]
        lines += ["", *(f"* {note}" for note in (*part.notes, *part.errors))]
    return "\n".join(lines) + "\n"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table, numbers to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def _finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
