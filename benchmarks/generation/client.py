"""The load generator for streamed answers: a process of its own that keeps what arrives and when."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final, Literal, Protocol

from benchmarks.child import Child
from benchmarks.generation.work import Trace, Work, drive

GRACE_SECONDS: Final = 600.0
Piece = tuple[float, bytes]
"""When something arrived, in monotonic seconds, and what."""


@dataclass(frozen=True, slots=True)
class StreamJob:
    """Requests to one address.

    Attributes:
        protocol: how to ask.
        address: ``host:port``.
        target: the gRPC method or the URL path.
        headers: gRPC metadata or HTTP headers.
        bodies: serialised requests.
        callers: how many ask at once, each on a connection of its own.
        gaps: seconds until each caller begins; empty for none.
        cut: seconds after which a caller leaves; 0 stays.
    """

    protocol: Literal["grpc", "http"]
    address: str
    target: str
    headers: tuple[tuple[str, str], ...]
    bodies: tuple[bytes, ...]
    callers: int
    gaps: list[float]
    cut: float = 0.0


@dataclass(slots=True)
class Received:
    """The trace of a job without its tokens, and the pieces of each answer."""

    trace: Trace
    pieces: list[list[Piece]]


class Stream(Protocol):
    """A connection that does one request at a time."""

    async def ask(self, body: bytes, sink: Callable[[bytes], None]) -> None:
        """Send a request; hand over pieces of the answer as they arrive; return when it is complete."""

    def close(self) -> None:
        """Break the connection off."""


class StreamClient(Child):
    """The parent's end. Use as a context manager."""

    def __init__(self) -> None:
        """Start the process."""
        super().__init__(_serve)

    def run(self, job: StreamJob) -> Received:
        """Do a job and wait for its end.

        Raises:
            TimeoutError: requests hang.
            RuntimeError: the job could not be done.
        """
        self.connection.send(job)
        if not self.connection.poll(GRACE_SECONDS):
            raise TimeoutError(f"{job.target}: requests were not answered in time")
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Received)
        return answer


def _serve(connection: Pipe) -> None:
    import uvloop

    # Imported here so that it is not loaded for the first time inside a measurement.
    from benchmarks.generation import streams  # noqa: F401

    gc.collect()
    gc.freeze()
    connection.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            job = connection.recv()
            gc.disable()
            try:
                answer: Received | Exception = uvloop.run(_do(job))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                answer = RuntimeError(f"{type(error).__name__}: {error}")
            gc.enable()
            connection.send(answer)


async def _do(job: StreamJob) -> Received:
    pieces: list[list[Piece]] = [[] for _ in job.bodies]
    async with _connections(job) as idle:

        async def ask(number: int, _: Trace) -> None:
            connection = idle.pop()
            keep = pieces[number].append

            def sink(data: bytes) -> None:
                keep((time.monotonic(), data))

            try:
                await asyncio.wait_for(connection.ask(job.bodies[number], sink), job.cut or None)
            except TimeoutError:
                connection.close()
            finally:
                idle.append(connection)

        lengths = [0] * len(job.bodies)
        trace = await drive(Work([[] for _ in lengths], lengths, job.callers, job.gaps), ask)
    return Received(trace, pieces)


@asynccontextmanager
async def _connections(job: StreamJob) -> AsyncIterator[list[Stream]]:
    """Open one connection a caller."""
    from benchmarks.generation.streams import connect

    opened: list[Stream] = []
    try:
        while len(opened) < job.callers:
            opened.append(await connect(job))
        yield opened.copy()
    finally:
        for connection in opened:
            connection.close()
