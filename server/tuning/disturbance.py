"""How much of the machine other programs used while something was measured."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """Seconds since some moment: of the clock, of CPU that anybody used, and of CPU that was ours."""

    wall: float
    machine: float
    own: float


def usage(pids: Sequence[int]) -> Usage:
    """Read what was used so far on the processors that this process may run on.

    Args:
        pids: processes that are ours beside this one.
    """
    every = psutil.cpu_times(percpu=True)
    mine = [every[number] for number in os.sched_getaffinity(0) if number < len(every)]
    # What a hypervisor gave to others instead (steal) disturbs like any other program.
    busy = sum(sum(times) - _not_working(times) for times in mine)
    return Usage(time.perf_counter(), busy, sum(_cpu_seconds(pid) for pid in (os.getpid(), *pids)))


def disturbance(before: Usage, after: Usage) -> float:
    """Return the share of the processors that other programs used between two readings, from 0 to 1."""
    cores = len(os.sched_getaffinity(0))
    others = (after.machine - before.machine) - (after.own - before.own)
    span = (after.wall - before.wall) * cores
    return min(1.0, max(0.0, others / span)) if span > 0 else 0.0


def _not_working(times: object) -> float:
    """Return idle time, and what Linux counts twice: guests are in user time as well."""
    names = ("idle", "iowait", "guest", "guest_nice")
    return sum(float(getattr(times, name, 0.0)) for name in names)


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
