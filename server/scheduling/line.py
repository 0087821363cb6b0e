"""Requests that wait for room in the queue.

Each level has a line of its own. The first of a more urgent level goes before all of less urgent ones, unless
it is only its own level that has no room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.server.scheduling.queue import WaitingParts
    from headrace.server.scheduling.work import Part, Pending


class Entry(NamedTuple):
    """One request: what :meth:`headrace.server.scheduling.batcher.Batcher.run` was given."""

    pending: Pending
    parts: Sequence[Part]
    level: int
    timeout_us: int


class Line:
    """Who waits for room in ``queue``; joining and leaving take the same time however many wait."""

    def __init__(self, queue: WaitingParts) -> None:
        """Start with nobody."""
        self._queue = queue
        self._levels: dict[int, dict[Pending, Entry]] = {}  # only those in which anybody waits

    def __bool__(self) -> bool:
        """Tell whether anybody waits."""
        return bool(self._levels)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate most urgent level first, in order of arrival within a level."""
        for level in sorted(self._levels):
            yield from self._levels[level].values()

    def join(self, entry: Entry) -> None:
        """Add a request behind those of its level."""
        self._levels.setdefault(entry.level, {})[entry.pending] = entry

    def leave(self, pending: Pending, level: int) -> None:
        """Take a request out; idempotent."""
        waiting = self._levels.get(level)
        if waiting is not None and waiting.pop(pending, None) is not None and not waiting:
            del self._levels[level]

    def precedes(self, level: int) -> bool:
        """Tell whether somebody here is let in before a newcomer of ``level``."""
        return level in self._levels or any(
            self._queue.room < len(self._first(other).parts) for other in self._levels if other < level
        )

    def let_in(self) -> Iterator[Entry]:
        """Yield one request after another as long as there is room; each enters before the next."""
        for level in sorted(self._levels):
            while level in self._levels:
                entry = self._first(level)
                if len(entry.parts) > self._queue.room:
                    return
                if not self._queue.fits(len(entry.parts), level):
                    break
                self.leave(entry.pending, level)
                yield entry

    def _first(self, level: int) -> Entry:
        return next(iter(self._levels[level].values()))
