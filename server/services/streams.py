"""Streamed answers of REST facades that always give back what they hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator


async def primed(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Run ``chunks`` up to its first ``yield``, whose value is dropped, and return it.

    A generator that was never begun does not run its ``finally`` when it is closed, so a caller who goes
    between the request and the first chunk would leave a running generation behind.
    """
    await anext(chunks)
    return chunks
