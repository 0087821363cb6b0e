"""One contender doing one piece of work: processor clocks on one side, its trace on the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import psutil

from benchmarks.generation.figures import Figures, figures
from benchmarks.generation.paths import ServerPath
from benchmarks.generation.peers.process import PeerProcess
from benchmarks.generation.peers.registry import FLOOR
from benchmarks.generation.results import Reading
from benchmarks.generation.work import Trace, Work
from benchmarks.processes import CpuMeter


class Contender(Protocol):
    """Something that continues prompts."""

    name: str
    title: str

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return its processes, in groups whose CPU time is told apart."""

    def pause(self) -> None:
        """Make it cost nothing while others are measured."""

    def resume(self) -> None:
        """Let it go on."""


@dataclass(slots=True)
class Measured:
    """A reading, and the trace that it comes from."""

    reading: Reading
    trace: Trace


def measure(contender: ServerPath | PeerProcess, work: Work) -> Measured:
    """Do ``work`` and evaluate it."""
    meter = CpuMeter(contender.groups())
    meter.start()
    if isinstance(contender, ServerPath):
        # Answers are read after the clocks: what it costs to understand them is no part of the measurement.
        received = contender.send(work)
        spent = meter.stop()
        trace = contender.read(received)
    else:
        trace = contender.run(work)
        spent = meter.stop()
    found = figures(work, trace)
    last = max((times[-1] for times in trace.times if times), default=trace.begin)
    other = spent.pop("other")
    reading = Reading(
        rate=found.rate,
        decode_rate=found.decode_rate,
        ttft_ms=found.ttft_ms,
        itl_p50_ms=found.itl_p50_ms,
        itl_p99_ms=found.itl_p99_ms,
        cpu={} if contender.name == FLOOR else _per_thousand(spent, found),
        other_cores=0.0 if contender.name == FLOOR else other / max(last - trace.begin, 1e-9),
        load=os.getloadavg()[0],
        failed=len(trace.errors) or int(found.missing > 0),
        errors=trace.errors[:3] or ([f"{found.missing} tokens are missing"] if found.missing else []),
    )
    return Measured(reading, trace)


def _per_thousand(spent: dict[str, float], found: Figures) -> dict[str, float]:
    return {
        name: seconds * 1000.0 / found.tokens if found.tokens else float("nan")
        for name, seconds in spent.items()
    }
