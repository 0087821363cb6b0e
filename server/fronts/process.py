"""One front process as the core sees it: spawned, spoken to, counted, and started again when it dies."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from headrace.server.fronts.catalogue import counters
from headrace.server.fronts.link import BUFFER_BYTES, Link
from headrace.server.fronts.messages import (
    TO_CORE,
    Abort,
    Aborted,
    Applied,
    Begin,
    Counted,
    Drain,
    Listening,
    Released,
    Report,
    StartFailed,
    ToCore,
)
from headrace.server.fronts.publishing import Snapshot, catalogue
from headrace.server.fronts.session import Session
from headrace.server.telemetry.requests import Series
from headrace.server.telemetry.sums import add

if TYPE_CHECKING:
    from headrace.server.fronts.counting import Totals
    from headrace.server.telemetry.requests import RequestMetrics

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 5.0
"""How long a front whose socket was closed may take to end before it is killed."""


class FrontProcess:
    """One run of a front process.

    Args:
        begin: what it is told first.
        requests: where its RPCs are counted.
        moved: called when it has applied a catalogue or has ended.

    Attributes:
        listening: resolved when it takes RPCs; with an exception when it cannot.
        requests: RPCs that it has answered, as far as it has reported.
    """

    def __init__(self, begin: Begin, requests: RequestMetrics, moved: Callable[[], None]) -> None:
        self._begin = begin
        self._metrics = requests
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._child: subprocess.Popen[bytes] | None = None
        self._link: Link[ToCore] | None = None
        self._session = Session(self.send)
        self._gone = asyncio.Event()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._next = 0
        self._active = 0
        self._applied: int | None = None
        self.requests = 0
        self.listening: asyncio.Future[None] = self._loop.create_future()

    @property
    def pid(self) -> int:
        """Process id, 0 before it was spawned."""
        return self._child.pid if self._child is not None else 0

    @property
    def applied(self) -> int | None:
        """Number of the last catalogue that its requests see; None while it has no requests."""
        ready = self.listening.done() and not self._gone.is_set()
        return (self._applied or 0) if ready else None

    async def spawn(self) -> None:
        """Spawn the process, which waits for :meth:`introduce`."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        number = str(theirs.fileno())
        command = [sys.executable, "-m", "headrace.server.fronts", "--fd", number]
        try:
            # A session of its own: Ctrl-C is for the core, which has the fronts drain.
            self._child = subprocess.Popen(  # noqa: ASYNC220 - vfork returns at once
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._link = await Link.over(ours, TO_CORE, self._take, self._ended, patient=True)

    def introduce(self, snapshot: Snapshot) -> None:
        """Tell it who it is; it listens when it has taken in ``snapshot``."""
        self.send(self._begin)
        self.show(snapshot)

    def send(self, message: msgspec.Struct) -> None:
        """Write a message."""
        if self._link is not None:
            self._link.send(message)

    def show(self, snapshot: Snapshot) -> None:
        """Send a catalogue."""
        known = self._session.models
        self.send(catalogue(snapshot, known))
        for number, (model, _) in snapshot.models.items():
            known[number] = model

    async def collect(self) -> int:
        """Have it report what it has counted; returns 0 when that was added up."""
        return await self._ask(Report)

    async def abort(self, name: str) -> int:
        """Have it end the requests of this name, and return how many there were."""
        return await self._ask(lambda number: Abort(number, name))

    def drain(self, seconds: float) -> None:
        """Have it finish and exit."""
        self.send(Drain(seconds))

    def close(self) -> None:
        """Have it end at once."""
        if self._link is not None:
            self._link.abort()

    async def ended(self) -> int | None:
        """Wait until it has gone, and return its exit status."""
        await self._gone.wait()
        child = self._child
        if child is None:
            return None
        try:
            return await asyncio.to_thread(child.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            return await asyncio.to_thread(child.wait)

    async def _ask(self, message: Callable[[int], msgspec.Struct]) -> int:
        if self.applied is None:
            return 0
        self._next += 1
        asked: asyncio.Future[int] = self._loop.create_future()
        self._asked[self._next] = asked
        self.send(message(self._next))
        return await asked

    def _take(self, message: ToCore) -> None:
        if isinstance(message, Counted):
            self._count(message)
            self._answered(message.number, 0)
        elif isinstance(message, Applied):
            self._applied = message.number
            self._moved()
        elif isinstance(message, Released):
            self._session.models.pop(message.model, None)
        elif isinstance(message, Aborted):
            self._answered(message.number, message.count)
        elif isinstance(message, Listening):
            if not self.listening.done():
                self.listening.set_result(None)
        elif isinstance(message, StartFailed):
            if not self.listening.done():
                self.listening.set_exception(FrontError(message.message))
        else:
            self._session.take(message)

    def _answered(self, number: int, value: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_result(value)

    def _count(self, message: Counted) -> None:
        self._metrics.active += message.active - self._active
        self._active = message.active
        totals: Totals = pickle.loads(message.counts)  # noqa: S301 - from a child, over a socket made for it
        for labels, counts in totals.series.items():
            add(self._metrics.series.setdefault(labels, Series()), counts)
            self.requests += sum(counts["codes"].values())
        for number, counts in totals.models.items():
            model = self._session.models.get(number)
            if model is not None:
                add(counters(model), counts)

    def _ended(self) -> None:
        self._metrics.active -= self._active
        self._active = 0
        self._session.end()
        self._link = None
        self._gone.set()
        for number in list(self._asked):
            self._answered(number, 0)
        if not self.listening.done():
            self.listening.set_exception(FrontError("the front process ended before it listened"))
        self._moved()


class FrontError(Exception):
    """A front cannot run; the text says why."""
