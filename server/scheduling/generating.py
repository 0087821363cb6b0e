"""The generator: hands requests to the engines of a model version, and their news to the tickets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.runtimes.generation.messages import Accepted, Add, Rejected, Started, Tokens
from headrace.server.errors import (
    ExecutionFailedError,
    HeadraceError,
    QueueFullError,
    RequestRefusedError,
    WorkerCrashedError,
)
from headrace.server.scheduling.tickets import RequestTicket

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.runtimes.generation.messages import EngineStats, Outputs
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.telemetry.generation import GenerationStatistics
    from headrace.server.workers.generation import GenerationInstance

MOST_SENDS: Final = 3
"""Engines that a request is sent to: if all of them died before they began with it, it may be the reason."""


class Seat:
    """What one engine has in hand: its requests, and the most tokens that they may take together."""

    __slots__ = ("engine", "reported", "tickets", "tokens")

    def __init__(self, engine: GenerationInstance) -> None:
        """Begin with nothing."""
        self.engine = engine
        self.tickets: dict[int, RequestTicket] = {}
        self.tokens = 0
        self.reported: EngineStats | None = None  # by the engine's worker, the last time


class EngineGenerator:
    """All engines of one model version: routing, bounded admission, and what happens when an engine dies.

    Args:
        model: name, for messages.
        statistics: where requests and tokens are counted.
        max_queue: requests that may wait when all slots of the engines are taken.
    """

    def __init__(self, model: str, statistics: GenerationStatistics, max_queue: int) -> None:
        self.statistics = statistics
        self._model = model
        self._max_queue = max_queue
        self._seats: dict[GenerationInstance, Seat] = {}
        self._tickets: dict[int, RequestTicket] = {}
        self._unsent: dict[int, RequestTicket] = {}  # no engine was ready; oldest first
        self._next_id = 0
        self._waiting = 0
        self._running = 0  # samples of started requests
        self._closed: HeadraceError | None = None
        self._idle: asyncio.Event | None = None

    @property
    def active(self) -> int:
        """Requests that have a ticket and have not ended."""
        return len(self._tickets)

    @property
    def waiting(self) -> int:
        """Requests of those that no engine has started yet."""
        return self._waiting

    @property
    def running(self) -> int:
        """Requests that an engine has started."""
        return len(self._tickets) - self._waiting

    @property
    def stats(self) -> Sequence[EngineStats]:
        """The latest statistics of each engine."""
        return [engine.stats for engine in self._seats]

    def submit(self, prompt: NDArray[np.int32], sampling: Sampling) -> RequestTicket:
        """Hand a request to the engine with the least work; it waits where none is ready.

        Raises:
            QueueFullError: as many requests wait as may.
            ModelNotReadyError: the model was given up or is being unloaded.
        """
        if self._closed is not None:
            raise _again(self._closed)
        slots = sum(engine.slots for engine in self._seats if engine.ready)
        if self._waiting >= self._max_queue + max(0, slots - self._running):
            self.statistics.observe_refused()
            msg = "Exceeds maximum queue size"
            raise QueueFullError(
                msg, model=self._model, waiting=str(self._waiting), limit=str(self._max_queue)
            )
        self._next_id += 1
        message = Add(self._next_id, prompt.astype("<i4", copy=False).tobytes(), sampling)
        ticket = RequestTicket(message, self._leave)
        self._tickets[ticket.id] = ticket
        self._waiting += 1
        self.statistics.observe_admitted(sampling.max_tokens, sampling.n)
        self._send(ticket)
        return ticket

    async def drain(self, error: HeadraceError) -> None:
        """Refuse new requests with ``error`` and wait until the admitted ones have ended."""
        self._closed = error
        if self._tickets:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def abort(self, error: HeadraceError) -> None:
        """Refuse new requests and end the admitted ones with ``error``: no engine will run them."""
        self._closed = error
        for ticket in list(self._tickets.values()):
            self._end(ticket)
            ticket.fail(_again(error))

    # Callbacks of the engines.

    def attach(self, engine: GenerationInstance) -> None:
        """Send requests to ``engine`` too."""
        self._seats[engine] = Seat(engine)
        engine.attach(self)

    def ready(self) -> None:
        """Send what no engine was ready for."""
        unsent, self._unsent = self._unsent, {}
        for ticket in unsent.values():
            self._send(ticket)

    def outputs(self, engine: GenerationInstance, outputs: Outputs) -> None:
        """Give each ticket its news; requests that have left are passed over."""
        now = time.perf_counter()
        tickets, statistics, seat = self._tickets, self.statistics, self._seats[engine]
        statistics.observe_steps(seat.reported, outputs.stats)
        seat.reported = outputs.stats
        started = 0
        for event in outputs.events:
            ticket = tickets.get(event.request)
            if ticket is None:
                continue
            if isinstance(event, Tokens):
                if event.sample not in ticket.unfinished:  # its reader has ended it meanwhile
                    continue
                self._take(ticket, event, now)
            elif isinstance(event, Started):
                started += 1
                self._start(ticket, event.cached_tokens)
            elif isinstance(event, Rejected):
                self._end(ticket)
                invalid = event.kind == "invalid"
                ticket.fail((RequestRefusedError if invalid else ExecutionFailedError)(event.message))
                continue
            elif isinstance(event, Accepted):
                if ticket.accepted:  # by an engine that has died since
                    continue
                ticket.accepted = True
            ticket.push(event)
        if started:
            statistics.tgi.next_sizes.observe(started)

    def died(self, engine: GenerationInstance) -> int:
        """Fail what the engine had started, and give the rest to another, or to itself once it is back."""
        seat = self._seats[engine]
        lost = list(seat.tickets.values())
        seat.reported = None
        for ticket in lost:
            if ticket.started:
                self._end(ticket)
                ticket.fail(engine.crashed())
            elif ticket.sends >= MOST_SENDS:
                self._end(ticket)
                ticket.fail(
                    WorkerCrashedError(
                        f"the worker process of model '{self._model}' ended {MOST_SENDS} times before it "
                        "began with this request, which is not sent again: it may be the reason",
                        model=self._model,
                    )
                )
            else:
                self._take_seat(ticket, None)
                self._send(ticket)
        return len(lost)

    # The books.

    def _send(self, ticket: RequestTicket) -> None:
        """Send a ticket that has no seat to the ready engine with the least work, if there is one."""
        seats = [seat for seat in self._seats.values() if seat.engine.ready]
        if not seats or ticket.message is None:
            self._unsent[ticket.id] = ticket
            return
        seat = min(seats, key=_tokens)
        self._take_seat(ticket, seat)
        ticket.sends += 1
        seat.engine.add(ticket.message)

    def _take_seat(self, ticket: RequestTicket, seat: Seat | None) -> None:
        """Move a ticket to ``seat``, or out of the one it has."""
        old, ticket.seat = ticket.seat, seat
        if old is not None:
            del old.tickets[ticket.id]
            old.tokens -= ticket.tokens
        if seat is not None:
            seat.tickets[ticket.id] = ticket
            seat.tokens += ticket.tokens

    def _start(self, ticket: RequestTicket, cached_tokens: int) -> None:
        if not ticket.started:
            ticket.started = True
            ticket.message = None
            self._waiting -= 1
            self._running += ticket.samples
            self.statistics.observe_started(ticket.prompt_tokens, cached_tokens)

    def _take(self, ticket: RequestTicket, event: Tokens, now: float) -> None:
        """Count new tokens, and end a request with its last sample."""
        self._count(ticket, len(event.token_ids), now)
        if event.finish is not None:
            ticket.unfinished.discard(event.sample)
            if not ticket.unfinished:
                self._end(ticket)

    def _count(self, ticket: RequestTicket, tokens: int, now: float) -> None:
        """Count new tokens; samples whose tokens come together have waited equally long for them."""
        if not tokens:
            return
        self.statistics.generated_tokens += tokens
        if tokens > 1:
            self.statistics.tgi.observe_guessed(tokens - 1)
        if now != ticket.last_token:
            ticket.gap = now - ticket.last_token if ticket.last_token else 0.0
            ticket.last_token = now
        if ticket.gap:
            self.statistics.inter_token_seconds.observe(ticket.gap)

    def _leave(self, ticket: RequestTicket, sample: int) -> None:
        """Take out a ticket whose owner does not wait any more; not for ``sample`` alone, if it is not -1."""
        if ticket.seat is not None:
            ticket.seat.engine.abort(ticket.id, sample)
        if sample < 0:
            self._end(ticket)

    def _end(self, ticket: RequestTicket) -> None:
        """Take a ticket out of the books; it keeps the news that were not read yet."""
        ticket.ended = True
        ticket.message = None
        del self._tickets[ticket.id]
        self._unsent.pop(ticket.id, None)
        self._take_seat(ticket, None)
        if ticket.started:
            self._running -= ticket.samples
        else:
            self._waiting -= 1
        self.statistics.observe_left()
        if self._idle is not None and not self._tickets:
            self._idle.set()


def _tokens(seat: Seat) -> int:
    return seat.tokens


def _again(error: HeadraceError) -> HeadraceError:
    """Copy an error that several requests get: one object that is raised many times grows its traceback."""
    return type(error)(error.message, **error.metadata)
