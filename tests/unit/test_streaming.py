"""Streamed REST answers: pieces, keep-alive, deadlines, and errors before and after the first piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody

from headrace.server.errors import (
    DeadlineExceededError,
    ExecutionFailedError,
    HeadraceError,
    InvalidArgumentError,
)
from headrace.server.interceptors import Interceptors
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.streaming import Deadline, pieces
from headrace.server.telemetry.requests import RequestMetrics


def stream(chunks: AsyncGenerator[bytes, None], keep_alive: bytes = b":\n\n") -> HttpStream:
    return HttpStream(chunks, lambda error: f"error: {error.message}".encode(), keep_alive=keep_alive)


async def of(chunks: Iterable[bytes], closed: list[bool] | None = None) -> AsyncGenerator[bytes, None]:
    try:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk
    finally:
        if closed is not None:
            closed.append(True)


async def slow(gate: asyncio.Event, closed: list[bool] | None = None) -> AsyncGenerator[bytes, None]:
    try:
        await gate.wait()
        yield b"late"
    finally:
        if closed is not None:
            closed.append(True)


async def test_chunks_come_as_they_are() -> None:
    assert [piece async for piece in pieces(stream(of([b"a", b"b"])), Deadline(None))] == [b"a", b"b"]


async def test_silence_is_filled_and_the_chunk_is_not_lost() -> None:
    gate = asyncio.Event()
    seen: list[bytes] = []
    async for piece in pieces(stream(slow(gate)), Deadline(None), silence=0.01):
        seen.append(piece)
        if len(seen) == 3:
            gate.set()
    assert seen == [b":\n\n"] * 3 + [b"late"]


async def test_no_keep_alive_when_the_family_has_none() -> None:
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, gate.set)
    found = [piece async for piece in pieces(stream(slow(gate), b""), Deadline(None), silence=0.01)]
    assert found == [b"late"]


async def test_a_deadline_closes_the_stream() -> None:
    closed: list[bool] = []
    found = pieces(stream(slow(asyncio.Event(), closed)), Deadline(0.05))
    with pytest.raises(DeadlineExceededError, match=r"deadline of 0\.05 seconds"):
        await anext(found)
    assert closed == [True]


async def test_a_caller_that_leaves_closes_the_stream() -> None:
    closed: list[bool] = []
    found = pieces(stream(slow(asyncio.Event(), closed)), Deadline(None))
    task = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await found.aclose()
    assert closed == [True]


class Context:
    """What the wrapper uses of grpc's context."""

    def __init__(self, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.metadata = metadata
        self.sent: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.sent = metadata


class Family:
    """A family whose errors are their messages."""

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        return HttpReply(error.message.encode(), status=418)


async def answer(method: Any, context: Context) -> list[tuple[str, bytes]]:
    metrics = RequestMetrics()
    wrapped = Interceptors(metrics).facade_stream("family", "Rpc", method, Family())
    bodies = [(body.content_type, body.data) async for body in wrapped(HttpBody(), context)]  # type: ignore[arg-type]
    assert metrics.active == 0
    return bodies


async def test_a_refused_request_has_its_status() -> None:
    async def refuse(request: Any, call: Call) -> HttpStream:
        msg = "no"
        raise InvalidArgumentError(msg)

    context = Context()
    assert await answer(refuse, context) == [("application/json", b"no")]
    assert ("x-http-status", "418") in context.sent


async def test_an_answer_in_one_piece() -> None:
    async def reply(request: Any, call: Call) -> HttpReply:
        return HttpReply(b"{}")

    assert await answer(reply, Context()) == [("application/json", b"{}")]


async def test_an_error_in_the_stream_is_its_last_piece() -> None:
    async def fail() -> AsyncGenerator[bytes, None]:
        yield b"data"
        msg = "the model failed"
        raise ExecutionFailedError(msg)

    async def begin(request: Any, call: Call) -> HttpStream:
        return stream(fail())

    context = Context()
    kind = "text/event-stream; charset=utf-8"
    assert await answer(begin, context) == [(kind, b"data"), (kind, b"error: the model failed")]
    assert ("cache-control", "no-cache") in context.sent


async def test_the_deadline_holds_for_the_stream_too() -> None:
    async def begin(request: Any, call: Call) -> HttpStream:
        return stream(slow(asyncio.Event()))

    found = await answer(begin, Context((("oicm-request-timeout", "0.05"),)))
    assert found == [("text/event-stream; charset=utf-8", b"error: the deadline of 0.05 seconds passed")]


async def test_a_deadline_before_the_stream_is_a_refusal() -> None:
    async def think(request: Any, call: Call) -> HttpStream:
        await asyncio.Event().wait()
        raise AssertionError

    found = await answer(think, Context((("oicm-request-timeout", "0.05"),)))
    assert found == [("application/json", b"the deadline of 0.05 seconds passed")]
