"""Many requests of one stream at the same time, their answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

STREAM_LIMIT: Final = 1024
"""Requests of one stream that are under way at the same time, where a protocol says no other number."""

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]], limit: int
) -> AsyncGenerator[Response]:
    """Yield ``answer(request)`` for each request, in order, while up to ``limit`` of them are under way.

    Nothing more is read from ``requests`` while ``limit`` answers are wanting or not taken yet. The first
    error of an answer ends the stream; leaving the iteration early cancels what is under way.
    """
    started: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(limit)
    running: set[asyncio.Future[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.ensure_future(answer(request))
                running.add(task)
                started.put_nowait(task)
        finally:
            started.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await started.get()) is not None:
            response = await task
            running.discard(task)
            yield response
            room.release()
        await reader
    finally:
        reader.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
