"""Virtual environments of the programs that Headrace is compared with, each with its own packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TORCH: Final = "2.13.0"
Say = Callable[[str], None]
Create = Callable[[Path, list[str], Say], None]
"""(folder, names or none for all, who is told) → None."""


class UnavailableError(Exception):
    """A peer cannot run here; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One virtual environment: ``probe`` runs in it once pip has done ``steps``, one list of arguments each.

    ``{torch}`` is a constraints file that holds torch to the build that the first step installed.
    ``unwanted`` are packages that PyPI has for torch with CUDA and that break imports beside the CPU build.
    """

    name: str
    note: str
    probe: str
    steps: tuple[tuple[str, ...], ...]
    unwanted: tuple[str, ...] = ()


def make(environment: Environment, folder: Path, say: Say) -> None:
    """Make ``environment`` below ``folder``; what is complete is kept, what was interrupted is made anew.

    Raises:
        subprocess.CalledProcessError: a step failed; its output is in ``folder``'s log of the environment.
    """
    target = folder / environment.name
    python = target / "bin" / "python"
    if _works(environment, python):
        say(f"{environment.name}: is there")
        return
    say(f"{environment.name}: {environment.note}")
    shutil.rmtree(target, ignore_errors=True)
    constraints = target / "torch.txt"
    with (folder / f"{environment.name}.log").open("w") as log:
        call([sys.executable, "-m", "venv", target], log.fileno())
        for step in environment.steps:
            words = [word.replace("{torch}", str(constraints)) for word in step]
            call([python, "-m", "pip", "install", *words], log.fileno())
            constraints.write_text(_torch(python), encoding="utf-8")
        if environment.unwanted:
            call([python, "-m", "pip", "uninstall", "-y", *environment.unwanted], log.fileno())


def there(path: Path, remedy: str) -> Path:
    """Return ``path``.

    Raises:
        UnavailableError: there is nothing; ``remedy`` says what to do.
    """
    if not path.exists():
        raise UnavailableError(f"there is no {path}: {remedy}")
    return path


def command(environments: Sequence[Environment], create: Create, folder: Path, wanted: list[str]) -> int:
    """Do what a ``--create`` was asked for; return the exit code."""
    known = [environment.name for environment in environments]
    for name in wanted:
        if name not in known:
            print(f"there is no environment '{name}'; there are {', '.join(known)}", file=sys.stderr)
            return 2
    folder.mkdir(parents=True, exist_ok=True)
    try:
        create(folder.resolve(), wanted, print)
    except subprocess.CalledProcessError as error:
        print(f"failed: {error}; see the logs in {folder}", file=sys.stderr)
        return 1
    return 0


def call(words: Sequence[str | Path], log: int) -> None:
    """Run a program on all cores, its output into ``log``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0)))}
    subprocess.run(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, check=True)


def _works(environment: Environment, python: Path) -> bool:
    """Return whether an earlier call has made the environment."""
    if not python.exists():
        return False
    words = [str(python), "-c", environment.probe]
    quiet = subprocess.DEVNULL
    return not subprocess.run(words, stdout=quiet, stderr=quiet, stdin=quiet, check=False).returncode


def _torch(python: Path) -> str:
    """Return a constraint to the torch that is installed; nothing where there is none."""
    listed = subprocess.run(
        [python, "-m", "pip", "freeze"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    return "".join(f"{line}\n" for line in listed if line.startswith("torch=="))
