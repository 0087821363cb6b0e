"""The parts that wait, by priority level, in order of arrival; removing any is one dictionary delete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    @property
    def room(self) -> int:
        """Parts that may still come in, as far as it is not their level that is full."""
        return self._policy.max_queue - self._size

    def fits(self, count: int, level: int) -> bool:
        """Tell whether ``level`` has room for ``count`` more parts."""
        limit = self._policy.queue_of(level).max_size
        return self._size + count <= self._policy.max_queue and (
            not limit or len(self._levels[level]) + count <= limit
        )

    def add(self, parts: Sequence[Part], level: int) -> None:
        """Put parts behind those that wait in ``level``, which has room for all of them (:meth:`fits`)."""
        queue = self._levels[level]
        for part in parts:
            part.level = level
            queue[part] = None
        self._size += len(parts)

    def full(self, count: int, level: int) -> QueueFullError:
        """Return what is said when ``level`` has no room for ``count`` more parts: which limit it is."""
        waiting, limit = len(self._levels[level]), self._policy.queue_of(level).max_size
        if not limit or waiting + count <= limit:
            waiting, limit = self._size, self._policy.max_queue
        return QueueFullError("Exceeds maximum queue size", waiting=str(waiting), limit=str(limit))

    def put_back(self, parts: Sequence[Part]) -> None:
        """Return parts to the front of their levels, in their order, whether there is room or not."""
        for level in {part.level for part in parts}:
            first = {part: None for part in parts if part.level == level}
            self._levels[level] = first | self._levels[level]
        self._size += len(parts)

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
