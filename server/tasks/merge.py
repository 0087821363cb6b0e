"""Several generation requests started and read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar

from headrace.server.tasks.text_stream import complete

if TYPE_CHECKING:
    from headrace.server.tasks.generation import Delta, Generation
    from headrace.server.tasks.text_stream import TextStream


ItemT = TypeVar("ItemT")


async def started(
    items: Iterable[ItemT], start: Callable[[ItemT], Awaitable[TextStream]]
) -> list[TextStream]:
    """Start a request for each item, one after the other, or none when one is refused.

    Raises:
        HeadraceError: what ``start`` raises; streams that had begun are closed.
    """
    streams: list[TextStream] = []
    async with AsyncExitStack() as cleanup:
        for item in items:
            stream = await start(item)
            cleanup.push_async_callback(stream.aclose)
            streams.append(stream)
        cleanup.pop_all()
    return streams


async def merged(streams: Sequence[TextStream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield (index of the stream, delta) as deltas come, those of one stream in their order.

    The first error of one stream ends all. The streams stay the caller's to close.
    """
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    waiting = {asyncio.ensure_future(_next(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                number = waiting.pop(task)
                found = task.result()
                if found is None:
                    continue
                waiting[asyncio.ensure_future(_next(streams[number]))] = number
                yield number, found
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)


async def _next(stream: TextStream) -> Delta | None:
    return await anext(stream, None)


async def completed(streams: Sequence[TextStream]) -> list[Generation]:
    """Collect all streams, which are closed however this ends; the first error of one ends all."""
    if len(streams) == 1:
        return [await complete(streams[0])]
    tasks = [asyncio.ensure_future(complete(stream)) for stream in streams]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await close_all(streams)  # a task that was never begun has not closed its stream


async def close_all(streams: Sequence[TextStream]) -> None:
    """Free the slots of all streams; idempotent."""
    for stream in streams:
        await stream.aclose()
