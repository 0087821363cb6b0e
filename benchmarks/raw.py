"""The raw limit: the model in bare loops, one process an instance, nothing around it."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any, Final, Protocol, Self, cast

import numpy as np
import onnxruntime as ort

from benchmarks.estimates import Times, Window, credited
from benchmarks.workloads import Workload

START_SECONDS: Final = 60.0
FINALISTS: Final = 3
"""Candidates of a search that are measured a second time."""

FINAL: Final = 3
"""How many times longer that is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the machine is cut up: processes, threads of each, and whether idle threads spin."""

    instances: int
    threads: int
    spinning: bool = False

    def __str__(self) -> str:
        """Say it in a few characters."""
        return f"{self.instances}x{self.threads}{' spinning' if self.spinning else ''}"


class Counter(Protocol):
    """A number that all processes of a pool share."""

    value: int

    def get_lock(self) -> contextlib.AbstractContextManager[Any]:
        """Return the lock that guards it."""


@dataclass(frozen=True, slots=True)
class Task:
    """Run batches of ``batch`` (grouped as ``Workload.feeds`` says) from now until ``until``."""

    batch: int
    group: int
    until: float


class RawPool:
    """Processes that hold the model and wait for tasks. Use as a context manager."""

    def __init__(self, workload: Workload, layout: Layout) -> None:
        """Start the processes and load the model in each."""
        self.layout = layout
        context: SpawnContext = multiprocessing.get_context("spawn")
        self._counter = cast("Counter", context.Value("q", 0))
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(layout.instances):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, workload, layout, self._counter), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            if not connection.poll(START_SECONDS):
                raise TimeoutError("a bare loop did not load its model in time")
            connection.recv()

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()

    def measure(self, batch: int, group: int, seconds: float, warmup: float = 0.3) -> float:
        """Return items per second over ``seconds``, after ``warmup`` seconds."""
        begin = time.monotonic() + warmup
        window = Window(begin, begin + seconds)
        for connection in self._connections:
            connection.send(Task(batch, group, window.end))
        total = 0.0
        for connection in self._connections:
            starts, ends, weights = connection.recv()
            total += credited(starts, ends, window, weights)
        return total / window.seconds


def session_of(workload: Workload, threads: int, *, spinning: bool) -> ort.InferenceSession:
    """Load the workload's model with ``threads`` intra-op threads on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return ort.InferenceSession(str(workload.model_file), options, providers=["CPUExecutionProvider"])


def _serve(connection: Connection, workload: Workload, layout: Layout, counter: Counter) -> None:
    """Be one instance: load, then work through tasks until the other side closes."""
    session = session_of(workload, layout.threads, spinning=layout.spinning)
    connection.send("loaded")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            connection.send(_loop(session, workload, connection.recv(), counter))


def _loop(
    session: ort.InferenceSession, workload: Workload, task: Task, counter: Counter
) -> tuple[Times, Times, Times]:
    """Take batches in turn with the other instances; a batch begun before the end is finished."""
    feeds = workload.feeds(task.batch, task.group)
    lock = counter.get_lock()
    spans: list[tuple[float, float, float]] = []
    while (start := time.monotonic()) < task.until:
        with lock:
            turn = counter.value
            counter.value = turn + 1
        feed = feeds[turn % len(feeds)]
        workload.run(session, feed)
        spans.append((start, time.monotonic(), feed.weight))
    columns = np.asarray(spans, np.float64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def layouts(cores: int) -> list[Layout]:
    """Return the ways worth trying to cut up ``cores`` cores, the many-instances ones first."""
    divisors = [threads for threads in sorted({1, 2, 4, cores}) if threads <= cores and cores % threads == 0]
    found = [Layout(cores // threads, threads) for threads in divisors]
    return [*found, Layout(1, cores, spinning=True)] if cores > 1 else found


@dataclass(frozen=True, slots=True)
class Best:
    """The winner of a search and everything that was tried: (layout, batch, items per second)."""

    layout: Layout
    batch: int
    tried: tuple[tuple[str, int, float], ...]


def search(
    workload: Workload, candidates: Sequence[Layout], batches: Sequence[int], group: int, seconds: float
) -> Best:
    """Try every layout with every batch size for ``seconds``, the best of them longer; return the fastest."""
    tried: list[tuple[float, Layout, int]] = []
    for layout in candidates:
        with RawPool(workload, layout) as pool:
            tried += [(pool.measure(batch, group, seconds), layout, batch) for batch in batches]
    finalists = sorted(tried, key=lambda entry: entry[0], reverse=True)[:FINALISTS]
    longer = []
    for _, layout, batch in finalists:
        with RawPool(workload, layout) as pool:
            longer.append((pool.measure(batch, group, FINAL * seconds), layout, batch))
    _, layout, batch = max(longer, key=lambda entry: entry[0])
    return Best(layout, batch, tuple((str(each), size, rate) for rate, each, size in tried))


def group_batches(batches: Sequence[int], group: int) -> list[int]:
    """Drop batch sizes that a group of ``group`` items can never fill."""
    return list(itertools.takewhile(lambda batch: batch <= group, batches)) if group else list(batches)
