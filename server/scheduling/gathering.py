"""When the event loop has taken in what there is, so that a batch may be formed."""

from __future__ import annotations

from typing import Final

IDLE_TURN_NS: Final = 40_000
"""A turn of the event loop up to this long has done nothing but poll."""

GATHER_NS: Final = 2_000_000
"""A batch is formed after this many nanoseconds even if the loop is still busy taking in requests."""

PATIENCE_NS: Final = 100_000
"""While fewer requests wait than were under way lately, the loop has to have done nothing for so long:
callers ask one by one, and gRPC's own library hands over one by one, so turns in between look idle."""

_NEARLY_ALL: Final = 0.9
_ALONE: Final = 16  # turns in a row with one request
_FADING: Final = 0.98  # of how many were under way lately, with every turn


class Gathering:
    """Looks at the turns of the loop between the first part that waits and the batch."""

    def __init__(self) -> None:
        self._turn_ns = 0  # when the current turn began
        self._busy_ns = 0  # when the last turn ended that did something
        self._end_ns = 0
        self._lately = 1.0
        self._single = 0  # turns in a row with no more than one request

    @property
    def alone(self) -> bool:
        """Whether there was one request at a time of late, so that none will join the one that is there."""
        return self._single >= _ALONE

    def begin(self, now: int, others: int = 0) -> None:
        """Begin at ``now``, in nanoseconds of a monotonic clock; ``others`` requests are under way."""
        if others:
            self._single = 0
        self._turn_ns = self._busy_ns = now
        self._end_ns = now + GATHER_NS

    def more(self, now: int, waiting: int, active: int) -> bool:
        """Tell at the end of a turn whether another one should pass before a batch is formed.

        A turn that took longer than an empty one has handled other events, such as further requests; then the
        next may bring more. A lone client waits for one empty turn, a few microseconds.

        Args:
            now: as for :meth:`begin`.
            waiting: parts that wait.
            active: requests that were admitted and are not answered.
        """
        if now - self._turn_ns > IDLE_TURN_NS:
            self._busy_ns = now
        self._turn_ns = now
        self._lately = max(self._lately * _FADING, active)
        self._single = self._single + 1 if active <= 1 else 0
        patience = PATIENCE_NS if waiting < _NEARLY_ALL * self._lately else 0
        return now - self._busy_ns <= patience and now < self._end_ns
