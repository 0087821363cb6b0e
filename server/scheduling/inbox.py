"""Where the news of one request for text gather until its reader takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import Event


class Inbox:
    """Events in order, and the error behind them.

    Events gather in a list that the reader takes away whole; one future wakes it, however many there are.

    Attributes:
        error: what the events end with; None as long as nothing failed.
    """

    __slots__ = ("_events", "_waiter", "error")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.error: Exception | None = None
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, events: Sequence[Event]) -> None:
        """Add news."""
        self._events.extend(events)
        self.wake()

    def fail(self, error: Exception) -> None:
        """End the events with ``error``; no other inbox may get the same object."""
        self.error = error
        self.wake()

    def clear(self) -> None:
        """Forget what was not taken."""
        self._events.clear()

    def wake(self) -> None:
        """Have the reader look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until something wakes the reader.

        Raises:
            RuntimeError: another task waits.
        """
        if self._waiter is not None:
            msg = "another task waits for this request"
            raise RuntimeError(msg)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def take(self, ended: Callable[[], bool]) -> Sequence[Event]:
        """Wait for events and return them in order; what came before the error comes before it here.

        Raises:
            RuntimeError: nothing is left and ``ended`` says that nothing follows, or another task waits.
            Exception: the error.
        """
        while True:
            if self._events:
                events, self._events = self._events, []
                return events
            if self.error is not None:
                raise self.error
            if ended():
                msg = "the request has ended"
                raise RuntimeError(msg)
            await self.wait()
