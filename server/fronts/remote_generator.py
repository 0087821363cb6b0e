"""A front's side of text generation: generator and tickets of a model whose engines the core feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headrace.server.errors import CancelledError
from headrace.server.fronts.errors import unpack_error
from headrace.server.fronts.messages import Admitted, Answer, Cancel, EndSample, News, Refused, Submit
from headrace.server.scheduling.inbox import Inbox

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headrace.runtimes.generation.messages import EngineStats, Event
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.fronts.remote import Requests
    from headrace.server.telemetry.generation import GenerationStatistics


class RemoteTicket:
    """One request in an engine behind the core: see :class:`headrace.server.scheduling.generator.Ticket`."""

    __slots__ = ("_admitted", "_ended", "_inbox", "_left", "_request", "_requests")

    def __init__(self, requests: Requests, left: Callable[[], None]) -> None:
        """Get a number from ``requests``; ``left`` is called once, when the request has ended."""
        self._requests = requests
        self._left = left
        self._admitted = self._ended = False
        self._inbox = Inbox()
        self._request = requests.begin(self._take)

    @property
    def request(self) -> int:
        """The number by which the core knows it."""
        return self._request

    async def admitted(self) -> None:
        """Wait until the request has its place; raises what ``submit`` raises where the engines are."""
        inbox = self._inbox
        while not self._admitted and inbox.error is None:
            await inbox.wait()
        if not self._admitted and inbox.error is not None:
            raise inbox.error

    async def events(self) -> Sequence[Event]:
        """Wait for news and return it in order; what came before a failure comes before it here."""
        return await self._inbox.take(lambda: self._ended)

    def end(self, sample: int) -> None:
        """Have the engine end one sample. Idempotent."""
        if not self._ended:
            self._requests.send(EndSample(self._request, sample))

    def close(self) -> None:
        """Leave: whatever still runs is aborted. Idempotent."""
        if not self._ended:
            self._requests.send(Cancel(self._request))
            self._finish()
            self._inbox.clear()
            self._inbox.fail(CancelledError("the request was cancelled"))

    def _take(self, message: Answer) -> None:
        if isinstance(message, News):
            if message.last:
                self._finish()
            self._inbox.push(message.events)
        elif isinstance(message, Admitted):
            self._admitted = True
            self._inbox.wake()
        elif isinstance(message, Refused):
            self._finish()
            self._inbox.fail(unpack_error(message.error))

    def _finish(self) -> None:
        self._ended = True
        self._requests.end(self._request)
        self._left()


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
