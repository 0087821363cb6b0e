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
from typing import Any, Final, NamedTuple, Protocol, Self, cast

import numpy as np
import onnxruntime as ort

from benchmarks.estimates import Times, Window, credited
from benchmarks.workloads import Workload
from headrace.runtimes.onnx.operators import register

START_SECONDS: Final = 60.0
PASSES: Final = 2
"""Times that a search tries every candidate; the better time counts, as others can only slow a loop down."""


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

    def measure(self, batch: int, group: int, seconds: float, warmup: float = 0.3) -> Rate:
        """Return what the loops did in ``seconds``, after ``warmup`` seconds."""
        begin = time.monotonic() + warmup
        window = Window(begin, begin + seconds)
        for connection in self._connections:
            connection.send(Task(batch, group, window.end))
        items = done = cpu = 0.0
        for connection in self._connections:
            spans: Spans = connection.recv()
            items += credited(spans.starts, spans.ends, window, spans.weights)
            done += float(spans.weights.sum())
            cpu += spans.cpu
        return Rate(items / window.seconds, cpu * 1000 / done if done else float("nan"))


class Rate(NamedTuple):
    """Items per second, and CPU-seconds per 1,000 items."""

    items: float
    cpu: float


class Spans(NamedTuple):
    """When each batch of one instance began and ended, what it was worth, and CPU-seconds of them all."""

    starts: Times
    ends: Times
    weights: Times
    cpu: float


def session_of(workload: Workload, threads: int, *, spinning: bool) -> ort.InferenceSession:
    """Load the workload's model with ``threads`` intra-op threads on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    register(options)  # for graphs that the server made
    return ort.InferenceSession(str(workload.model_file), options, providers=["CPUExecutionProvider"])


def _serve(connection: Connection, workload: Workload, layout: Layout, counter: Counter) -> None:
    """Be one instance: load, then work through tasks until the other side closes."""
    session = session_of(workload, layout.threads, spinning=layout.spinning)
    connection.send("loaded")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            connection.send(_loop(session, workload, connection.recv(), counter))


def _loop(session: ort.InferenceSession, workload: Workload, task: Task, counter: Counter) -> Spans:
    """Take batches in turn with the other instances; a batch begun before the end is finished."""
    feeds = workload.feeds(task.batch, task.group)
    lock = counter.get_lock()
    cpu = time.process_time()
    spans: list[tuple[float, float, float]] = []
    while (start := time.monotonic()) < task.until:
        with lock:
            turn = counter.value
            counter.value = turn + 1
        feed = feeds[turn % len(feeds)]
        workload.run(session, feed)
        spans.append((start, time.monotonic(), feed.weight))
    columns = np.asarray(spans, np.float64).reshape(-1, 3)
    return Spans(columns[:, 0], columns[:, 1], columns[:, 2], time.process_time() - cpu)


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
    """Try every layout with every batch size, ``seconds`` at a time, and return the fastest."""
    rates: dict[tuple[Layout, int], float] = {}
    for _ in range(PASSES):
        for layout in candidates:
            with RawPool(workload, layout) as pool:
                for batch in batches:
                    rate = pool.measure(batch, group, seconds).items
                    rates[layout, batch] = max(rate, rates.get((layout, batch), 0.0))
    layout, batch = max(rates, key=lambda candidate: rates[candidate])
    return Best(layout, batch, tuple((str(each), size, rate) for (each, size), rate in rates.items()))


def group_batches(batches: Sequence[int], group: int) -> list[int]:
    """Drop batch sizes that a group of ``group`` items can never fill."""
    return list(itertools.takewhile(lambda batch: batch <= group, batches)) if group else list(batches)
