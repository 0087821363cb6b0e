"""What ``headrace tune`` does: measure at length, show every candidate, write the best one down."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from headrace.server.errors import HeadraceError
from headrace.server.repository.config import parse_text
from headrace.server.repository.layout import ModelFolder, open_model
from headrace.server.repository.preparation import prepare
from headrace.server.tuning.cache import TuningCache
from headrace.server.tuning.tuner import Outcome, Step, tune
from headrace.server.tuning.workload import NotTunableError
from headrace.server.tuning.writing import with_measured, without_measured, write_text

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine


@dataclass(frozen=True, slots=True)
class Order:
    """What to do.

    Attributes:
        names: of the models.
        roots: the repositories.
        seconds: for each model.
        write: the best setting goes into config.pbtxt.
        tolerance: share of the processors that other programs may use meanwhile; what was measured on a
            busier machine is shown, but neither kept nor written.
    """

    names: Sequence[str]
    roots: Sequence[Path]
    seconds: float
    write: bool
    tolerance: float


def warn_of_cache(folder: Path, console: Console) -> None:
    """Say before anything is measured that its outcome cannot be kept, where that is so.

    Args:
        folder: of the setting ``tuning_cache``; it is not made yet, for there may be nothing to keep.
        console: where the warning goes.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        # A superuser is permitted to write what cannot be written, below /proc say: only trying tells.
        with tempfile.TemporaryDirectory(dir=there):
            return
    except OSError as error:
        _say(
            console,
            f"warning: tuning_cache: nothing can be kept in '{folder}' ({error.strerror}): what is measured "
            "will be shown, and written with --write, but servers will not find it there; set "
            "HEADRACE_TUNING_CACHE to a folder that can be written to",
        )


async def tune_models(order: Order, machine: Machine, cache: TuningCache, console: Console) -> bool:
    """Tune models one after another; whether all of them could be, and what came of it was kept.

    Args:
        order: what to do.
        machine: what instances are planned for.
        cache: keeps the outcomes, for servers without ``tuning: off``.
        console: where tables go.
    """
    ok = True
    for name in order.names:
        try:
            ok &= await _tune_one(name, order, machine, cache, console)
        except (HeadraceError, NotTunableError, OSError) as error:
            reason = error.message if isinstance(error, HeadraceError) else str(error)
            _say(console, f"{name}: not tuned: {reason}")
            ok = False
    return ok


async def _tune_one(name: str, order: Order, machine: Machine, cache: TuningCache, console: Console) -> bool:
    """Tune a model; whether the outcome was kept. Where it cannot be, so long a work is still used."""
    folder, text, definition = await asyncio.to_thread(_read, name, order.roots, machine)
    outcome = await _measure(definition, machine, order.seconds)
    console.print(table(definition, outcome))
    if outcome.disturbance > order.tolerance:
        raise NotTunableError(
            f"other programs used {outcome.disturbance:.0%} of the processors meanwhile, more than "
            f"tuning_tolerance ({order.tolerance:.0%}): measure again when they have ended"
        )
    try:
        path = await asyncio.to_thread(cache.write, definition, outcome.record(definition, cache.facts))
    except OSError as error:
        kept = False
        _say(console, f"{name}: not kept in tuning_cache, so servers will not find it there: {error}")
    else:
        kept = True
        _say(console, f"{name}: kept in {path}, which servers use unless they have `tuning: off`")
    if order.write:
        candidate = outcome.chosen.candidate
        changed = with_measured(text, definition, candidate, _note(definition, outcome, cache))
        prepare(folder, machine, parse_text(changed, folder.label(folder.config_file)))
        write_text(folder.config_file, changed)
        _say(console, f"{name}: written to {folder.label(folder.config_file)}")
    return kept


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _read(name: str, roots: Sequence[Path], machine: Machine) -> tuple[ModelFolder, str, ModelDefinition]:
    """Read a model as if it had not been tuned; its newest version stands for all. Blocking."""
    folder = open_model(name, roots)
    if not folder.config_file.exists():
        return folder, "", prepare(folder, machine)[-1]
    definition = prepare(folder, machine)[-1]
    text = folder.config_file.read_text(encoding="utf-8-sig")
    bare = without_measured(text)
    if bare != text:
        definition = prepare(folder, machine, parse_text(bare, folder.label(folder.config_file)))[-1]
    return folder, bare, definition


async def _measure(definition: ModelDefinition, machine: Machine, seconds: float) -> Outcome:
    """Measure under a progress bar."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(definition.name, total=seconds)
        started = time.monotonic()

        async def tick() -> None:
            while True:
                bar.update(task, completed=time.monotonic() - started)
                await asyncio.sleep(0.2)

        def progress(step: Step) -> None:
            bar.update(task, description=f"{definition.name}: {step.layouts[0]}, round {step.round}")

        ticking = asyncio.ensure_future(tick())
        try:
            return await tune(definition, machine, seconds=seconds, thorough=True, progress=progress)
        finally:
            ticking.cancel()


def table(definition: ModelDefinition, outcome: Outcome) -> Table:
    """Return a table of all candidates, the fastest first; ``*`` is the chosen one, ``=`` the present one."""
    texts = definition.text_model is not None
    shown = Table(
        title=f"{definition.name}, version {definition.version}: medians of {outcome.rounds} round(s)",
        caption=f"Other programs used {outcome.disturbance:.0%} of the processors."
        + ("" if outcome.complete else " Some candidates were left out: too little time or memory."),
        caption_justify="left",
        title_justify="left",
    )
    limit = "tokens a batch" if texts else "rows a batch"
    for head in ("", "instances x threads", limit, f"{'texts' if texts else 'requests'}/s", "÷ present",
                 "lone ms", "÷ present", "MiB"):  # fmt: skip
        shown.add_column(
            head, no_wrap=True, justify="left" if head in {"", "instances x threads"} else "right"
        )
    present = outcome.present
    for entry in sorted(outcome.measured, key=lambda entry: -entry.throughput):
        mark = "*" if entry is outcome.chosen else "=" if entry is present else ""
        shown.add_row(
            mark,
            str(entry.candidate.layout),
            str(entry.candidate.limit or 1),
            f"{entry.throughput:.1f}",
            f"{entry.throughput / present.throughput:.2f}",
            f"{entry.lone_ms:.2f}",
            f"{entry.lone_ms / present.lone_ms:.2f}",
            f"{entry.memory / 2**20:.0f}",
        )
    return shown


def _note(definition: ModelDefinition, outcome: Outcome, cache: TuningCache) -> str:
    chosen, present = outcome.chosen, outcome.present
    unit = "texts" if definition.text_model is not None else "requests"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cache.facts['cpu']}, {cache.facts['cores']} cores, {outcome.rounds} "
        f"round(s); {chosen.throughput:.1f} {unit}/s under load (before {present.throughput:.1f}), "
        f"{chosen.lone_ms:.2f} ms alone (before {present.lone_ms:.2f})"
    )
