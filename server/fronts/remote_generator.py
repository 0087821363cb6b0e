"""A front's side of text generation: generator and tickets of a model whose engines the core feeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headrace.server.errors import CancelledError
from headrace.server.fronts.errors import unpack_error
from headrace.server.fronts.messages import Admitted, Answer, Cancel, EndSample, News, Refused, Submit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headrace.runtimes.generation.messages import EngineStats, Event
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.fronts.remote import Requests
    from headrace.server.telemetry.generation import GenerationStatistics


class RemoteTicket:
    """One request in an engine behind the core: see :class:`headrace.server.scheduling.generator.Ticket`."""

    __slots__ = ("_admitted", "_ended", "_error", "_events", "_left", "_request", "_requests", "_waiter")

    def __init__(self, requests: Requests, left: Callable[[], None]) -> None:
        """Get a number from ``requests``; ``left`` is called once, when the request has ended."""
        self._requests = requests
        self._left = left
        self._admitted = self._ended = False
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._request = requests.begin(self._take)

    @property
    def request(self) -> int:
        """The number by which the core knows it."""
        return self._request

    async def admitted(self) -> None:
        """Wait until the request has its place; raises what ``submit`` raises where the engines are."""
        while not self._admitted and self._error is None:
            await self._wait()
        if not self._admitted and self._error is not None:
            raise self._error

    async def events(self) -> Sequence[Event]:
        """Wait for news and return it in order; what came before a failure comes before it here."""
        while not self._events and self._error is None:
            if self._ended:
                msg = "the request has ended"
                raise RuntimeError(msg)
            await self._wait()
        if self._events:
            events, self._events = self._events, []
            return events
        if self._error is None:
            msg = "a ticket was woken without news"
            raise RuntimeError(msg)
        raise self._error

    def end(self, sample: int) -> None:
        """Have the engine end one sample. Idempotent."""
        if not self._ended:
            self._requests.send(EndSample(self._request, sample))

    def close(self) -> None:
        """Leave: whatever still runs is aborted. Idempotent."""
        if not self._ended:
            self._requests.send(Cancel(self._request))
            self._finish()
            self._events.clear()
            self._error = CancelledError("the request was cancelled")
            self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            msg = "another task waits for this request"
            raise RuntimeError(msg)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self, message: Answer) -> None:
        if isinstance(message, News):
            self._events.extend(message.events)
            if message.last:
                self._finish()
        elif isinstance(message, Admitted):
            self._admitted = True
        elif isinstance(message, Refused):
            self._error = unpack_error(message.error)
            self._finish()
        self._wake()

    def _finish(self) -> None:
        self._ended = True
        self._requests.end(self._request)
        self._left()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RemoteGenerator:
    """All engines of one model version, which the core feeds.

    Args:
        model: number of the model.
        statistics: what the generate task counts here; the core adds it to its own.
        requests: the way to the core.
    """

    def __init__(self, model: int, statistics: GenerationStatistics, requests: Requests) -> None:
        self.statistics = statistics
        self._model = model
        self._requests = requests
        self._active = 0

    @property
    def active(self) -> int:
        """Requests of this front that have a ticket and have not ended."""
        return self._active

    @property
    def waiting(self) -> int:
        """None: the core alone knows which requests wait."""
        return 0

    @property
    def running(self) -> int:
        """Requests of this front that have not ended."""
        return self._active

    @property
    def stats(self) -> Sequence[EngineStats]:
        """None: the engines report to the core."""
        return ()

    def submit(self, prompt: NDArray[np.int32], sampling: Sampling) -> RemoteTicket:
        """Send a request to the core; ``admitted`` of its ticket says whether there is room for it."""
        ticket = RemoteTicket(self._requests, self._leave)
        self._active += 1
        content = prompt.astype("<i4", copy=False).tobytes()
        self._requests.send(Submit(ticket.request, self._model, content, sampling))
        return ticket

    def _leave(self) -> None:
        self._active -= 1
