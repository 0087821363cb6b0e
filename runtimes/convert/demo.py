"""Builds the demo repository: each model once, in a child process, resumable."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from headrace.runtimes.convert import manifest
from headrace.runtimes.convert.child import Order, build_in_child
from headrace.runtimes.convert.packages import fetch
from headrace.runtimes.convert.recipes import RECIPES, closure

SCRATCH: Final = ".building"
"""Where in the repository a model lies until it is finished: on the same file system, to be renamed."""


@dataclass(frozen=True)
class Progress:
    """How far a pull is.

    ``step`` is a model's name (empty at the very end), ``detail`` what happens to it in a few words, ``done``
    of ``total`` models are finished.
    """

    step: str
    detail: str
    done: int
    total: int


def pull(
    destination: Path, *, cache: Path, names: Sequence[str] | None, progress: Callable[[Progress], None]
) -> list[str]:
    """Build the demo models ``names`` (all when None) and what they need into the repository ``destination``.

    A model that is there already, built by the same recipe from the same sources, is left alone: a second
    pull does nothing, and an interrupted one goes on with the model it was at. Downloaded packages stay in
    ``cache``. Only one process at a time builds in one repository; a second one waits, then finds it done.

    Returns:
        The names of the models built by this call, in the order they were built.

    Raises:
        ConversionError: an unknown name, a package that could not be had, or a model that failed its checks.
    """
    wanted = closure(names)
    destination, cache = destination.resolve(), cache.resolve()
    destination.mkdir(parents=True, exist_ok=True)
    built: list[str] = []
    with _locked(destination):
        entries = manifest.read(destination)
        for done, name in enumerate(wanted):
            tell = partial(_tell, progress, name, done, len(wanted))
            if manifest.is_current(name, entries.get(name), destination):
                tell("up to date")
                continue
            entries[name] = _build(name, destination, cache, tell)
            manifest.write(destination, entries)
            built.append(name)
    progress(
        Progress("", f"{len(built)} built, {len(wanted) - len(built)} up to date", len(wanted), len(wanted))
    )
    return built


def _build(name: str, destination: Path, cache: Path, tell: Callable[[str], None]) -> manifest.Entry:
    """Build one model aside and rename it into the repository."""
    started = time.monotonic()
    packages = {}
    for package in RECIPES[name].packages:
        tell(f"fetching {package}")
        packages[package] = str(fetch(package, cache))
    scratch = destination / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    target = scratch / name
    target.mkdir(parents=True)
    try:
        tell("building")
        checks = build_in_child(Order(name, packages, str(destination), str(target)), tell)
        entry = manifest.describe(name, target, checks, time.monotonic() - started)
        if (destination / name).exists():
            (destination / name).rename(scratch / "replaced")
        target.rename(destination / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    tell(f"built in {entry.seconds:.1f} s")
    return entry


def _tell(progress: Callable[[Progress], None], name: str, done: int, total: int, detail: str) -> None:
    progress(Progress(name, detail, done, total))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
