"""Many requests of one stream at the same time: one answer each in their order, or many as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar

STREAM_LIMIT: Final = 1024
"""Requests of one stream that are under way at the same time, where a protocol says no other number."""

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    limit: int = STREAM_LIMIT,
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


async def answer_as_they_come(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    several: Callable[[Request], AsyncGenerator[Response] | None],
    limit: int,
) -> AsyncGenerator[Response]:
    """Yield the answers of all requests, while up to ``limit`` of the requests are under way.

    A request for which ``several`` returns a generator has the answers of that, between those of others; each
    other request has ``answer(request)``, in order among themselves. An answer that is not taken holds up its
    request. The first error ends the stream; leaving early cancels what is under way.
    """
    answers: _Answers[Response] = _Answers(limit)
    reader = asyncio.create_task(_read(requests, answer, several, answers))
    try:
        while (item := await answers.news.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            answers.space.release()
    finally:
        reader.cancel()
        await asyncio.gather(reader, *answers.cancel(), return_exceptions=True)


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    several: Callable[[Request], AsyncGenerator[Response] | None],
    answers: _Answers[Response],
) -> None:
    before: asyncio.Task[None] | None = None
    failure: Exception | None = None
    try:
        async for request in requests:
            await answers.room.acquire()
            generator = several(request)
            if generator is not None:
                answers.run(answers.many(generator))
            else:
                before = answers.run(answers.one(answer, request, before))
    except Exception as error:  # noqa: BLE001 - it comes behind the answers that are under way
        failure = error
    await answers.finish(failure)


class _Answers(Generic[Response]):
    """What requests that are under way have answered, and their tasks.

    Attributes:
        news: answers, or the error that ends the stream, or None at its end.
        room: for requests.
        space: for answers that are not taken yet.
    """

    def __init__(self, limit: int) -> None:
        self.news: asyncio.Queue[Response | Exception | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(limit)
        self.space = asyncio.Semaphore(limit)
        self._running: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def one(
        self,
        answer: Callable[[Request], Awaitable[Response]],
        request: Request,
        before: asyncio.Task[None] | None,
    ) -> None:
        """Give one answer, once the task ``before`` has given its own."""
        result: Response | Exception
        try:
            result = await answer(request)
        except Exception as error:  # noqa: BLE001 - it has its turn too
            result = error
        if before is not None and not before.done():
            await asyncio.wait((before,))
        await self._give(result)

    async def many(self, generator: AsyncGenerator[Response]) -> None:
        """Give what ``generator`` yields."""
        try:
            async with aclosing(generator):
                async for response in generator:
                    await self._give(response)
        except Exception as error:  # noqa: BLE001 - it ends the stream
            await self._give(error)

    async def finish(self, failure: Exception | None) -> None:
        """Wait for all tasks and end the stream."""
        while self._running:
            await asyncio.wait(self._running)
        self.news.put_nowait(failure)

    def cancel(self) -> tuple[asyncio.Task[None], ...]:
        """Cancel all tasks and return them."""
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        return tasks

    async def _give(self, result: Response | Exception) -> None:
        await self.space.acquire()
        self.news.put_nowait(result)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.room.release()
