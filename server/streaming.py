"""Time limits of REST requests, and what keeps a streamed answer alive while the model thinks."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import TYPE_CHECKING, Final

from headrace.server.errors import DeadlineExceededError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from headrace.server.services.call import Call, HttpStream

TIMEOUT_HEADER: Final = "oicm-request-timeout"
OICM_TIMEOUT_SECONDS: Final = 120.0  # default below /models/*/proxy: the OICM guide's
KEEP_ALIVE_SECONDS: Final = 15.0


class Deadline:
    """An async context that ends with :class:`DeadlineExceededError` when the caller's time is over.

    It may be entered again for further parts of the same request: the moment stays.
    """

    def __init__(self, seconds: float | None) -> None:
        """Begin to count; None is no limit."""
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        """Begin a part."""
        if self._at is not None:
            self._timeout = asyncio.timeout_at(self._at)
            await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End a part.

        Raises:
            DeadlineExceededError: the time was over before the part was.
        """
        timeout, self._timeout = self._timeout, None
        if timeout is None:
            return
        try:
            await timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise self.error() from None

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        if self._at is None:
            return None
        return max(0.0, self._at - asyncio.get_running_loop().time())

    def error(self) -> DeadlineExceededError:
        """Return what is raised when the time is over."""
        return DeadlineExceededError(f"the deadline of {self._seconds:g} seconds passed")


def deadline(call: Call) -> Deadline:
    """Return the limit of a REST request: what its header asks for, else its surface's.

    Raises:
        InvalidArgumentError: the header is not a positive number of seconds.
    """
    text = call.headers.get(TIMEOUT_HEADER)
    if text is None:
        return Deadline(OICM_TIMEOUT_SECONDS if call.surface == "oicm" else None)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        msg = f"OICM-Request-Timeout is '{text}', expected a positive number of seconds"
        raise InvalidArgumentError(msg)
    return Deadline(seconds)


async def pieces(
    stream: HttpStream, limit: Deadline, silence: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[bytes, None]:
    """Yield the stream's chunks, and its keep-alive after every ``silence`` seconds without one.

    Raises:
        DeadlineExceededError: the caller's time is over; the stream is closed.
    """
    chunks = stream.chunks
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(chunks))
            while True:
                left = limit.remaining
                wait = silence if left is None else min(silence, left)
                await asyncio.wait((pending,), timeout=wait)
                if pending.done():
                    break
                if limit.remaining == 0:
                    raise limit.error()
                if stream.keep_alive:
                    yield stream.keep_alive
            try:
                chunk = pending.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if pending is not None:
            if not pending.done():
                pending.cancel()
                await asyncio.wait((pending,))
            if not pending.cancelled():
                pending.exception()  # nobody waits for it any more: asyncio would log it
        await chunks.aclose()


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(chunks)
