"""The parts that wait, by priority level, in order of arrival; removing any is one dictionary delete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from headrace.server.errors import QueueFullError
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part


class WaitingParts:
    """Bounded queue with levels; each level has its waiting parts and, behind them, its delayed ones."""

    def __init__(self, policy: BatchingPolicy) -> None:
        """Create the levels of ``policy``."""
        self._policy = policy
        self._levels: dict[int, dict[Part, None]] = {
            level: {} for level in range(1, max(1, policy.priority_levels) + 1)
        }
        self._delayed: dict[Part, None] = {}
        self._size = 0

    def __len__(self) -> int:
        """Return how many parts wait."""
        return self._size

    def __contains__(self, part: Part) -> bool:
        """Tell whether ``part`` waits here."""
        return part in self._levels[part.level] or part in self._delayed

    def __iter__(self) -> Iterator[Part]:
        """Iterate most urgent level first, oldest first within a level, delayed parts last."""
        return chain(*self._levels.values(), self._delayed)

    def add(self, parts: Iterable[Part], level: int) -> None:
        """Admit all parts or none.

        Raises:
            QueueFullError: the level or the queue has no room for all of them.
        """
        waiting = list(parts)
        queue = self._levels[level]
        limit = self._policy.queue_of(level).max_size
        full = self._size + len(waiting) > self._policy.max_queue
        if full or (limit and len(queue) + len(waiting) > limit):
            msg = "Exceeds maximum queue size"
            raise QueueFullError(msg, waiting=str(self._size), limit=str(limit or self._policy.max_queue))
        for part in waiting:
            part.level = level
            queue[part] = None
        self._size += len(waiting)

    def put_back(self, parts: Iterable[Part]) -> None:
        """Return parts that no worker has begun to the front of their levels."""
        for part in reversed(list(parts)):
            queue = self._levels[part.level]
            self._levels[part.level] = {part: None, **queue}
            self._size += 1

    def remove(self, part: Part) -> bool:
        """Take a part out, wherever it waits; False when it does not."""
        for queue in (self._levels[part.level], self._delayed):
            if part in queue:
                del queue[part]
                self._size -= 1
                return True
        return False

    def postpone(self, part: Part) -> None:
        """Move an expired part behind all others."""
        if self.remove(part):
            self._delayed[part] = None
            self._size += 1
