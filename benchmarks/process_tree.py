"""A program and whatever it starts: stopped and continued together, and ended without leftovers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

STOP_SECONDS: Final = 3.0


class ProcessTree:
    """The processes below one that this program has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Watch ``process``."""
        self._process = process

    def processes(self) -> list[psutil.Process]:
        """Return those that are alive now, parents first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def pause(self) -> None:
        """Stop them where they are (SIGSTOP)."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let them go on, children first."""
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def end(self, ask: Callable[[], object], seconds: float = STOP_SECONDS) -> None:
        """Let them go on, ``ask`` the program to end, wait ``seconds`` and kill what is left.

        Some programs leave processes behind that ignore SIGTERM, so those are remembered beforehand.
        """
        self.resume()
        tree = self.processes()
        ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def last_words(name: str, log: Path) -> str:
    """Say that a program has ended, and how its log ends."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{name} ended: {lines[-1][:300] if lines else 'no output'}"
