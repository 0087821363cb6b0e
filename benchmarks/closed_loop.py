"""The closed loop itself, whatever the protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from typing import Final

import numpy as np

from benchmarks.estimates import Window
from benchmarks.load_job import Outcome

Ask = Callable[[bytes], Awaitable[object]]
"""Sends one request and returns when the answer is complete; raises when it is not a good one."""

MAX_ERRORS: Final = 3
PAUSE_SECONDS: Final = 0.05
"""Wait after an error, so that a server that refuses is not flooded."""


class ClosedLoop:
    """Callers that ask, wait for the answer and ask again."""

    def __init__(self, bodies: Sequence[bytes], weights: Sequence[float], window: Window) -> None:
        """Take ``bodies``, which count ``weights``, in turn and record what happens in ``window``."""
        self._bodies = cycle(zip(bodies, weights, strict=True))
        self._window = window
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._weights: list[float] = []
        self._open = 0
        self._errors: list[str] = []
        self._failed = 0
        self._done = asyncio.Event()

    async def run(self, callers: Sequence[Ask]) -> Outcome:
        """Let all callers ask until every request that began in the window is answered.

        Load goes on until then: a request that waits while others leave would be answered sooner than one
        under full load. Those still under way at the end are cancelled.
        """
        tasks = [asyncio.ensure_future(self._call(ask)) for ask in callers]
        await self._done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        starts, ends, weights = map(np.asarray, (self._starts, self._ends, self._weights))
        return Outcome(starts, ends, weights, self._errors, self._failed)

    async def _call(self, ask: Ask) -> None:
        end = self._window.end
        clock = time.monotonic
        while True:
            start = clock()
            counted = start < end
            if counted:
                self._open += 1
            elif not self._open:
                self._done.set()
                return
            body, weight = next(self._bodies)
            try:
                await ask(body)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failed request
                self._fail(error)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                if counted:
                    self._starts.append(start)
                    self._ends.append(clock())
                    self._weights.append(weight)
            finally:
                if counted:
                    self._open -= 1

    def _fail(self, error: Exception) -> None:
        self._failed += 1
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(f"{type(error).__name__}: {error}"[:500])
