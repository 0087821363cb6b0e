"""Deadlines, and callers who leave: the same of our server and of grpcio's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve, echo
from unit.transport.raw_peer import (
    DATA,
    END_HEADERS,
    HEADERS,
    NO_ERROR,
    RST,
    SECONDS,
    Peer,
    frame,
    literals,
    message,
    number,
    raw_peer,
)
from unit.transport.raw_peer import changed as headers_with

from headrace.server.transport.server import Server

pytestmark = pytest.mark.timeout(60)


class Held:
    """Handlers that wait until they are cancelled, and say so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.closed = asyncio.Event()
        self.handlers = {
            "One": grpc.unary_unary_rpc_method_handler(self.one),
            "Many": grpc.unary_stream_rpc_method_handler(self.many),
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Each": grpc.stream_stream_rpc_method_handler(self.each),
        }

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _inner(self) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await self._wait()
        finally:
            self.closed.set()

    async def one(self, request: bytes, context: Any) -> bytes:
        await self._wait()
        return b""

    async def many(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for part in self._inner():
            yield part

    async def join(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.begun.set()
        try:
            return b"".join([request async for request in requests])
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.closed.set()

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.begun.set()
        try:
            async for request in requests:
                yield request
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.closed.set()


async def happens(*events: asyncio.Event) -> None:
    async with asyncio.timeout(SECONDS):
        for event in events:
            await event.wait()


async def test_deadline_ends_a_unary_rpc_and_cancels_its_handler(serve: Serve) -> None:
    held = Held()
    running = await serve(held.handlers)
    call = running.unary_unary("One")(b"", timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await happens(held.cancelled)


async def test_deadline_ends_a_stream_and_closes_its_generators(serve: Serve) -> None:
    held = Held()
    running = await serve(held.handlers)
    call = running.unary_stream("Many")(b"", timeout=0.3)
    assert await call.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await happens(held.cancelled, held.closed)


async def test_handler_sees_the_time_that_remains(serve: Serve) -> None:
    async def look(request: bytes, context: Any) -> bytes:
        return repr(context.time_remaining()).encode()

    running = await serve({"Look": grpc.unary_unary_rpc_method_handler(look)})
    remaining = await running.unary_unary("Look")(b"", timeout=500)
    assert 400 < float(remaining) < 502  # clients round it up
    assert await running.unary_unary("Look")(b"") == b"None"


@pytest.mark.parametrize("name", ["One", "Many"])
async def test_caller_who_cancels_cancels_the_handler(serve: Serve, name: str) -> None:
    held = Held()
    running = await serve(held.handlers)
    call = running.unary_unary("One")(b"") if name == "One" else running.unary_stream("Many")(b"")
    if name == "Many":
        assert await call.read() == b"first"
    await happens(held.begun)
    call.cancel()
    await happens(held.cancelled)
    if name == "Many":
        await happens(held.closed)


@pytest.mark.parametrize("name", ["Join", "Each"])
async def test_caller_who_cancels_within_his_requests_ends_the_handler(serve: Serve, name: str) -> None:
    held = Held()
    running = await serve(held.handlers)
    call = running.stream_unary("Join")() if name == "Join" else running.stream_stream("Each")()
    await call.write(b"part")
    await happens(held.begun)
    call.cancel()
    await happens(held.closed)
    # grpcio may let a handler that reads think that its caller has sent all.
    assert held.cancelled.is_set() or not isinstance(running.server, Server)


async def test_callers_whose_connection_breaks_leave_no_handler(serve: Serve) -> None:
    held = Held()
    running = await serve(held.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""), path="/t.T/One")
        await happens(held.begun)
    await happens(held.cancelled)


async def test_handler_that_is_cancelled_by_itself_ends_the_rpc(own: Serve) -> None:
    async def leave(request: bytes, context: Any) -> bytes:
        raise asyncio.CancelledError

    running = await own({"Leave": grpc.unary_unary_rpc_method_handler(leave)})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.unary_unary("Leave")(b"", timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


async def test_rpcs_on_the_same_channel_go_on_after_one_is_cancelled(serve: Serve) -> None:
    held = Held()
    running = await serve(held.handlers | {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    call = running.unary_stream("Many")(b"")
    assert await call.read() == b"first"
    call.cancel()
    await happens(held.closed)
    assert await running.unary_unary("Echo")(b"on", timeout=SECONDS) == b"on"


async def test_server_ends_an_rpc_at_its_deadline_by_itself(own: Serve) -> None:
    held = Held()
    running = await own(held.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""), path="/t.T/One", fields=[("grpc-timeout", "50m")])
        answer = await peer.answer(1)
    assert answer.status == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    await happens(held.cancelled)


async def test_deadline_holds_before_the_request_is_there(own: Serve) -> None:
    held = Held()
    running = await own(held.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b"")[:3], path="/t.T/One", fields=[("grpc-timeout", "50m")], end=False)
        answer = await peer.answer(1)
        assert answer.status == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        peer.send(frame(DATA, 1, 1, message(b"")[3:]))  # too late
        await peer.settled()
    assert not held.begun.is_set()


async def test_time_that_remains_counts_from_the_headers(own: Serve) -> None:
    async def look(request: bytes, context: Any) -> bytes:
        return repr(context.time_remaining()).encode()

    running = await own({"Look": grpc.unary_unary_rpc_method_handler(look)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, path="/t.T/Look", fields=[("grpc-timeout", "50S")], end=False)
        await peer.settled()
        await asyncio.sleep(0.2)
        peer.send(frame(DATA, 1, 1, message(b"")))
        assert float((await peer.answer(1)).messages[0]) < 49.9


async def test_rpc_whose_time_is_over_is_not_begun(own: Serve) -> None:
    held = Held()
    running = await own(held.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""), path="/t.T/One", fields=[("grpc-timeout", "0S")])
        assert (await peer.answer(1)).status == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    assert not held.begun.is_set()


@pytest.mark.parametrize("text", ["", "5", "S", "-1S", "123456789S", "1.5S", "1x", "٣S"])
async def test_bad_timeouts_break_off_the_stream(peer: Peer, text: str) -> None:
    peer.greet()
    fields = [("grpc-timeout", text.encode().decode("latin-1"))]
    peer.request(1, message(b""), fields=fields)
    peer.request(3, message(b"x"))
    assert (await peer.answer(1)).reset == 1
    assert (await peer.answer(3)).messages == [b"x"]


@pytest.mark.parametrize("text", ["99999999H", "90M", "90S", "90000m", "90000000u", "09999999n"])
async def test_timeouts_of_each_unit_are_taken(peer: Peer, text: str) -> None:
    peer.greet()
    peer.request(1, message(b"x"), fields=[("grpc-timeout", text)])
    answer = await peer.answer(1)
    assert answer.messages == [b"x"] or (text[-1] == "n" and answer.status == "4")


async def test_caller_who_resets_before_his_message_costs_nothing(own: Serve) -> None:
    held = Held()
    running = await own(held.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        block = literals(headers_with((":path", "/t.T/One")))
        for stream in range(1, 200, 2):
            peer.send(frame(HEADERS, END_HEADERS, stream, block), frame(RST, 0, stream, number(NO_ERROR)))
        await peer.settled()
        assert not any(connection._streams for connection in running.server._calls.connections)
    assert not held.begun.is_set()


async def test_generator_that_waits_for_its_caller_is_closed_when_he_leaves(own: Serve) -> None:
    kept: list[Any] = []
    closed = asyncio.Event()

    async def pour() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 16)
        finally:
            closed.set()

    def begin(request: bytes, context: Any) -> Any:
        kept.append(pour())  # or it would be closed as garbage
        return kept[-1]

    running = await own({"Pour": grpc.unary_stream_rpc_method_handler(begin)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""), path="/t.T/Pour")
        await peer.settled()
        assert not closed.is_set()
        peer.send(frame(RST, 0, 1, number(8)))
        await happens(closed)
