"""One request in a generation engine, as the task that waits for it sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headrace.server.errors import CancelledError, HeadraceError
from headrace.server.scheduling.inbox import Inbox

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import Add, Event
    from headrace.server.scheduling.generating import Seat


class RequestTicket:
    """The events of one request, and its place in the generator's books.

    Attributes:
        id: by which the engine knows the request.
        message: what to send to an engine; None once one has started it, for it is not sent again.
        prompt_tokens: length of the prompt.
        samples: sequences that it takes in the engine.
        tokens: most tokens that it takes there, prompts and outputs together.
        unfinished: indices of the samples that have not ended.
        seat: the engine that has the request; None while it waits for one.
        sends: engines it was sent to.
        started: an engine has begun with it.
        accepted: an engine has said that it can run.
        last_token: when its last tokens came, ``time.perf_counter``; 0 before the first.
        gap: seconds between those and the ones before; 0 when there were none.
    """

    __slots__ = (
        "_inbox", "_leave", "accepted", "ended", "gap", "id", "last_token", "message",
        "prompt_tokens", "samples", "seat", "sends", "started", "tokens", "unfinished",
    )  # fmt: skip

    def __init__(self, message: Add, leave: Callable[[RequestTicket, int], None]) -> None:
        """Describe the request; ``leave`` takes a sample of it, or all for -1, out of engine and books."""
        sampling = message.sampling
        self.id = message.request
        self.message: Add | None = message
        self.prompt_tokens = len(message.prompt) // 4
        self.samples = max(1, sampling.best_of, sampling.n)
        self.tokens = self.prompt_tokens + self.samples * sampling.max_tokens
        self.unfinished = set(range(max(1, sampling.n)))
        self.seat: Seat | None = None
        self.sends = 0
        self.started = False
        self.accepted = False
        self.ended = False
        self.last_token = 0.0
        self.gap = 0.0
        self._leave = leave
        self._inbox = Inbox()

    async def admitted(self) -> None:
        """Return at once: the generator has given it to nobody whom it refused."""

    async def events(self) -> Sequence[Event]:
        """Wait for news: see :class:`headrace.server.scheduling.generator.Ticket`."""
        return await self._inbox.take(lambda: self.ended)

    def end(self, sample: int) -> None:
        """Have the engine end one sample, whose later news are passed over. Idempotent."""
        if sample in self.unfinished and not self.ended:
            self.unfinished.discard(sample)
            self._leave(self, sample if self.unfinished else -1)

    def close(self) -> None:
        """Leave: whatever still runs is aborted. Idempotent."""
        if not self.ended:
            self._leave(self, -1)
            self._inbox.clear()
            self.fail(CancelledError("the request was cancelled"))

    # For the generator.

    def push(self, event: Event) -> None:
        """Add news."""
        self._inbox.push((event,))

    def fail(self, error: HeadraceError) -> None:
        """End the events with ``error``; no other ticket may get the same object."""
        self._inbox.fail(error)
