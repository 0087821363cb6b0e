"""Putting load on a batcher: one request at a time, or as many as keep every instance busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from headrace.server.scheduling.batcher import Batcher
    from headrace.server.tuning.workload import Sample

RAMP: Final = 0.2
"""Share of the span that the load runs before anything counts."""

SETTLE_SECONDS: Final = 3.0
"""Longest wait for processes to become idle."""
_LOOK_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 0.02  # CPU time in one look; the kernel counts in steps of 10 ms


async def lone_seconds(batcher: Batcher, samples: Sequence[Sample], seconds: float) -> float:
    """Return how long an average request takes that has the model to itself.

    Args:
        batcher: with nothing else to do.
        samples: sent one after another, from the first, over and over.
        seconds: how long; at least one request is sent.
    """
    begin, weight = time.perf_counter(), 0.0
    for index in count():
        sample = samples[index % len(samples)]
        await batcher.run([sample.part()])
        weight += sample.weight
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return elapsed / weight
    raise AssertionError  # pragma: no cover - count() does not end


async def throughput(batcher: Batcher, samples: Sequence[Sample], clients: int, seconds: float) -> float:
    """Return the average requests a second that ``clients`` get who ask again as soon as they are answered.

    A request counts for the part of its time that lies inside the span, which begins after a ramp. Whole
    completions would measure where bursts fall: a batch answers several at once.

    Args:
        batcher: with nothing else to do.
        samples: taken in turns.
        clients: requests under way at any time.
        seconds: the span; load goes on until its last request is answered.

    Raises:
        HeadraceError: the first request that failed.
    """
    begin = time.perf_counter() + seconds * RAMP
    end = begin + seconds
    turn, done = count(), 0.0

    async def ask() -> None:
        nonlocal done
        while (started := time.perf_counter()) < end:
            sample = samples[next(turn) % len(samples)]
            await batcher.run([sample.part()])
            finished = time.perf_counter()
            inside = min(finished, end) - max(started, begin)
            if inside > 0:
                done += sample.weight * inside / (finished - started)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(ask())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return done / seconds


async def settle(pids: Sequence[int]) -> None:
    """Wait until processes use no CPU, say because what they load beside their work is there."""
    processes = [psutil.Process(pid) for pid in pids]
    deadline = time.monotonic() + SETTLE_SECONDS
    used = _cpu_seconds(processes)
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
        before, used = used, _cpu_seconds(processes)
        if used - before <= _IDLE_SECONDS:
            return


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(entry.user + entry.system for entry in times)
