"""Processes that rewrite graphs for a worker: what they need would stay in its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SECONDS: Final = 120.0
"""How long one may take."""

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")


class End(NamedTuple):
    """How one ended.

    Attributes:
        done: whether it did its work.
        text: what it says.
        passing: whether it has not said why it failed, as one that was killed for want of memory: another may
            succeed.
    """

    done: bool
    text: str
    passing: bool = False


def run(module: str, arguments: Sequence[str | Path]) -> End:
    """Run ``python -m module``, which takes ``--parent`` besides."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--parent", str(os.getpid())]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return End(done=False, text=f"it took longer than {SECONDS:.0f} s")
    done, told = child.returncode == 0, child.stdout.strip()
    said = told or child.stderr.strip() or f"the process ended with {child.returncode}"
    return End(done, said.splitlines()[-1], passing=not done and not told)


def serve(parent: int, work: Callable[[], str], refusal: type[Exception]) -> int:
    """Be such a process: do ``work`` and print what it says, or its ``refusal``; returns the exit status."""
    if not _begin(parent):
        return 1
    try:
        done = work()
    except refusal as error:
        sys.stdout.write(" ".join(str(error).split()))
        return 1
    sys.stdout.write(done)
    return 0


def _begin(parent: int) -> bool:
    """Have the process end with its ``parent``; False if that has happened already."""
    # Nobody wants the graph of a worker that was killed, maybe before this line.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return False
    with contextlib.suppress(OSError):  # where memory runs out, this process can be done without
        _OOM_SCORE.write_text("1000")
    return True
