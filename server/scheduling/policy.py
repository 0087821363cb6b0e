"""How a model's requests are queued and batched: plain values, filled from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from headrace.runtimes.base import Padding


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Limits of one priority level.

    Attributes:
        max_size: parts that may wait; 0 for no limit but the model's.
        default_timeout_us: microseconds a part may wait; 0 for ever.
        allow_override: a request may shorten the timeout (never lengthen it).
        delay: an expired part goes behind all others instead of being refused.
    """

    max_size: int = 0
    default_timeout_us: int = 0
    allow_override: bool = False
    delay: bool = False


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """How batches of a model are formed.

    Attributes:
        max_rows: rows in one batch of several parts, at least 1; a part that is larger goes alone.
        max_tokens: tokens in one batch of texts, padded where that costs as much; 0 for tensor models.
        padding: what is computed for the padding of a batch of texts.
        overhead_tokens: what a batch of texts costs besides its tokens, in tokens.
        join: parts of different requests may share a batch.
        preferred: batch sizes worth waiting ``delay_us`` for, ascending.
        delay_us: microseconds that the oldest part may wait for a better batch; 0 takes what waits.
        priority_levels: 0 for none; else levels 1 (most urgent) to this.
        default_level: level of a request that names none.
        max_queue: parts that may wait in all levels together.
        queue: limits of levels that ``level_queues`` does not name.
        level_queues: level → its own limits.
        lone: a batch that runs alone may use the all-threads form of an instance.
    """

    max_rows: int = 1
    max_tokens: int = 0
    padding: Padding = "all"
    overhead_tokens: int = 0
    join: bool = False
    preferred: tuple[int, ...] = ()
    delay_us: int = 0
    priority_levels: int = 0
    default_level: int = 1
    max_queue: int = 1024
    queue: QueuePolicy = field(default_factory=QueuePolicy)
    level_queues: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    lone: bool = True

    def level(self, priority: int) -> int:
        """Return the level for a request's ``priority`` (0 or out of range: the default level)."""
        if 1 <= priority <= self.priority_levels:
            return priority
        return self.default_level if self.priority_levels else 1

    def queue_of(self, level: int) -> QueuePolicy:
        """Return the limits of ``level``."""
        return self.level_queues.get(level, self.queue)

    def capacity(self, level: int) -> int:
        """Return how many parts may wait in ``level``."""
        return min(self.max_queue, self.queue_of(level).max_size or self.max_queue)

    def timeout_us(self, level: int, requested: int) -> int:
        """Return how many microseconds a request may wait in ``level``; 0 for ever."""
        queue = self.queue_of(level)
        own = queue.default_timeout_us
        if requested > 0 and queue.allow_override and (own == 0 or requested < own):
            return requested
        return own
