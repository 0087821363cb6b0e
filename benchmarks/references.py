"""What throughput is related to, measured in the same run, right before and after every point."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psutil

from benchmarks.empty_server import METHOD, EmptyServer
from benchmarks.load import LoadGenerator
from benchmarks.payloads import Payload
from benchmarks.points import ask
from benchmarks.raw import Best, Layout, RawPool, group_batches, layouts, search
from benchmarks.results import ReferenceResult
from benchmarks.scenarios import Scenario
from benchmarks.workloads import Texts, Workload
from headrace.runtimes.onnx.fusion import fused_entry

RAW: Final = "raw"
TWIN: Final = "one at a time"
PACKED: Final = "raw, packed"
"""Bare loops with the graph that the server makes of a text encoder; RAW has the one that was exported."""

GRAPHS: Final = Path(".cache/graphs")
"""Where the server keeps such graphs unless told otherwise."""


class Reading(NamedTuple):
    """Items per second, and CPU-seconds per 1,000 items (for a server: its own, per 1,000 requests)."""

    rate: float
    cpu: float


class Reference(Protocol):
    """Something that is measured beside the server."""

    result: ReferenceResult

    def measure(self, seconds: float) -> Reading:
        """Measure once more and remember it in ``result``."""


@dataclass(slots=True)
class Loop:
    """Bare loops: the raw limit, or the twin that takes one request at a time."""

    pool: RawPool
    batch: int
    group: int
    result: ReferenceResult

    def measure(self, seconds: float) -> Reading:
        """Run the loops for ``seconds``."""
        rate, cpu = self.pool.measure(self.batch, self.group, seconds)
        self.result.rates.append(rate)
        self.result.cpu.append(cpu)
        return Reading(rate, cpu)


@dataclass(slots=True)
class Empty:
    """The handler that does nothing, asked by the same client with the same requests."""

    server: EmptyServer
    load: LoadGenerator
    payload: Payload
    clients: int
    result: ReferenceResult = field(init=False)

    def __post_init__(self) -> None:
        """Name the result."""
        self.result = ReferenceResult(
            f"empty handler, {self.clients} client{'s' if self.clients > 1 else ''}",
            "grpc.aio, uvloop, one process",
        )

    def measure(self, seconds: float) -> Reading:
        """Ask it for ``seconds``."""
        groups = {"server": [psutil.Process(self.server.pid)]}
        measured = ask(self.load, self.server.address, self.payload, self.clients, seconds, 0.5, groups)
        if measured.failed:
            raise RuntimeError(f"the empty handler {METHOD} failed: {measured.errors}")
        self.result.rates.append(measured.rate)
        self.result.cpu.append(measured.cpu["server"])
        return Reading(measured.rate, measured.cpu["server"])


@contextmanager
def loops(
    scenario: Scenario, workload: Workload, cores: int, seconds: float
) -> Iterator[dict[str, Reference]]:
    """Find the best bare loops for ``cores`` cores, trying each for ``seconds``, and keep them ready."""
    candidates = layouts(cores)
    raw = search(workload, candidates, scenario.batches, 0, seconds)
    alone = [layout for layout in candidates if layout.instances == 1]
    rewritten = packed(workload)
    twin = search(workload, alone, group_batches(scenario.batches, scenario.items), scenario.items, seconds)
    with ExitStack() as stack:
        pools: dict[Layout, RawPool] = {}
        for layout in (raw.layout, twin.layout):
            if layout not in pools:
                pools[layout] = stack.enter_context(RawPool(workload, layout))
        found: dict[str, Reference] = {
            RAW: _loop(RAW, pools[raw.layout], raw, 0),
            TWIN: _loop(TWIN, pools[twin.layout], twin, scenario.items),
        }
        if rewritten is not None:
            best = search(rewritten, candidates, scenario.batches, 0, seconds)
            found[PACKED] = _loop(PACKED, stack.enter_context(RawPool(rewritten, best.layout)), best, 0)
        yield found


def packed(workload: Workload) -> Texts | None:
    """Return a text workload with the graph that the server runs; None where that is the exported one."""
    if not isinstance(workload, Texts):
        return None
    entry = fused_entry(workload.model_file, GRAPHS)
    if entry is None or not entry.packed.is_file():
        return None
    rewritten = copy.copy(workload)
    rewritten.model_file = entry.operators if entry.operators.is_file() else entry.packed
    return rewritten


def _loop(name: str, pool: RawPool, best: Best, group: int) -> Loop:
    setup = f"{best.layout} threads, batches of {best.batch}"
    return Loop(pool, best.batch, group, ReferenceResult(name, setup, tried=best.tried))


@contextmanager
def empties(
    load: LoadGenerator, payload: Payload, answer: bytes, clients: Sequence[int]
) -> Iterator[dict[str, Reference]]:
    """Keep a handler that does nothing ready; ``answer`` is what the real server answers."""
    with EmptyServer(answer) as server:
        yield {empty_name(count): Empty(server, load, payload, count) for count in clients}


def empty_name(clients: int) -> str:
    """Return the key of the empty handler at a number of clients."""
    return f"empty {clients}"
