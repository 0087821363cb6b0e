"""The soak's callers: a process of its own that tells every second what became of their requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final

from benchmarks import http2_client, http_client
from benchmarks.child import Child
from benchmarks.estimates import Window
from benchmarks.load_job import Job
from benchmarks.soak.plan import Plan
from benchmarks.soak.requests import Wire, draw
from benchmarks.soak.tally import Tally, status_of

TELL_SECONDS: Final = 1.0
CLOSED: Final = "the connection is closed"
"""What connections say when nothing was sent: the server had closed them while they were idle."""

REST_SECONDS: Final = 0.1
"""Pause of a caller that was refused."""


@dataclass(frozen=True, slots=True)
class SoakJob:
    """Where to ask, what for, when only one caller asks, and until when (monotonic seconds)."""

    grpc: str
    http: str
    plan: Plan
    seed: int
    quiet: tuple[float, float]
    end: float


class SoakClient(Child):
    """The parent's end. Use as a context manager; tallies come through :meth:`latest`."""

    def __init__(self, job: SoakJob) -> None:
        """Start to ask."""
        super().__init__(_serve, job)
        self.done = False

    def latest(self) -> Tally | None:
        """Return the newest tally that has come, or None; sets :attr:`done` with the last one.

        Raises:
            RuntimeError: the callers have failed themselves.
        """
        tally: Tally | None = None
        while not self.done and self.connection.poll():
            answer = self.connection.recv()
            if isinstance(answer, Exception):
                raise answer
            tally, self.done = answer
        return tally


def _serve(connection: Pipe, job: SoakJob) -> None:
    import uvloop

    connection.send("ready")
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            uvloop.run(_Soak(job, connection).run())
        except Exception as error:  # noqa: BLE001 - the parent raises it
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


class _Soak:
    """The callers."""

    def __init__(self, job: SoakJob, connection: Pipe) -> None:
        self._job = job
        self._connection = connection
        self._tally = Tally()
        self._draw = random.Random(job.seed)  # noqa: S311 - the same requests every time

    async def run(self) -> None:
        """Ask until the end; every request that was begun is waited for."""
        telling = asyncio.create_task(self._tell())
        others = [asyncio.create_task(self._call(self._job.end)) for _ in range(self._job.plan.callers - 1)]
        await asyncio.gather(self._call(self._job.end, always=True), *others, self._bursts())
        telling.cancel()
        self._connection.send((self._tally, True))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            self._connection.send((self._tally, False))

    async def _bursts(self) -> None:
        plan, end = self._job.plan, self._job.end
        while time.monotonic() + plan.burst_every + plan.burst_seconds < end:
            await asyncio.sleep(plan.burst_every)
            until = time.monotonic() + plan.burst_seconds
            await asyncio.gather(*(self._call(until) for _ in range(plan.burst)))

    async def _call(self, until: float, *, always: bool = False) -> None:
        """Be one caller: its connections live until it leaves, is let down, or has nothing more to ask.

        It asks nothing while it is quiet, unless ``always``.
        """
        pause, on = self._job.quiet
        open_: dict[str, http2_client.Connection | http_client.Connection] = {}
        while (now := time.monotonic()) < until:
            if pause <= now < on and not always:
                await asyncio.sleep(on - now)
                continue
            wire, body = draw(self._draw, self._job.plan.longest)
            before = self._tally.refused.total()
            if not await self._ask(open_, wire, body) and (left := open_.pop(wire.name, None)):
                left.close()
            if self._tally.refused.total() > before:
                await asyncio.sleep(REST_SECONDS)
        for connection in open_.values():
            connection.close()

    async def _ask(
        self, open_: dict[str, http2_client.Connection | http_client.Connection], wire: Wire, body: bytes
    ) -> bool:
        """Do one request; return whether its connection can be used again."""
        plan, tally = self._job.plan, self._tally
        leaves = self._draw.random() < plan.leave
        patience = self._draw.random() * plan.leave_seconds if leaves else plan.patience
        try:
            if wire.name not in open_:
                open_[wire.name] = await self._connect(wire)
            await asyncio.wait_for(_begin(open_[wire.name], body), patience)
        except TimeoutError as error:
            if not leaves:
                tally.note(wire.name, error)
            else:
                tally.left += 1
            return False
        except (http_client.AnswerError, OSError) as error:
            if str(error) != CLOSED:
                tally.note(wire.name, error)
            return status_of(str(error)) is not None
        tally.answered += 1
        return True

    async def _connect(self, wire: Wire) -> http2_client.Connection | http_client.Connection:
        address = self._job.grpc if wire.protocol == "grpc" else self._job.http
        host, port = address.rsplit(":", 1)
        job = Job(wire.protocol, address, wire.target, wire.headers, (), (), 1, Window(0.0, 0.0))
        loop = asyncio.get_running_loop()
        if wire.protocol == "grpc":
            _, called = await loop.create_connection(
                lambda: http2_client.Connection(job, _Framed()), host, int(port)
            )
            return called
        _, posted = await loop.create_connection(
            lambda: http_client.Connection(http_client.head(job)), host, int(port)
        )
        return posted


class _Framed(dict[bytes, bytes]):
    """Messages by body, framed when they are asked for: no two requests are alike."""

    def __missing__(self, body: bytes) -> bytes:
        return struct.pack(">BI", 0, len(body)) + body


async def _begin(connection: http2_client.Connection | http_client.Connection, body: bytes) -> object:
    answer: Awaitable[object] = connection.ask(body)
    return await answer
