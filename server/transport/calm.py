"""A limit for frames that ask for work and carry nothing."""

from __future__ import annotations

import time
from typing import Final

from headrace.server.transport.frames import BrokenProtocolError, ErrorCode

_EACH_SECOND: Final = 10_000


class Calm:
    """Counts such frames of one connection by the second."""

    __slots__ = ("_began", "_spent")

    def __init__(self) -> None:
        self._began = 0.0
        self._spent = 0

    def spend(self, cost: int) -> None:
        """Count a frame.

        Args:
            cost: pings that it is worth, at least 1.

        Raises:
            BrokenProtocolError: the caller sends too many.
        """
        now = time.monotonic()
        if now - self._began > 1:
            self._began, self._spent = now, 0
        self._spent += cost
        if self._spent > _EACH_SECOND:
            raise BrokenProtocolError(
                f"frames worth more than {_EACH_SECOND} pings in a second", ErrorCode.ENHANCE_YOUR_CALM
            )
