"""Peers who ask and do not read, or send more than they may; and such as are only slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve, echo, echo_each
from unit.transport.raw_peer import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FLOW,
    HEADERS,
    INITIAL_WINDOW,
    PING,
    SECONDS,
    SETTINGS,
    WIDEST,
    changed,
    frame,
    literals,
    message,
    number,
    raw_peer,
    settings,
    widen,
)
from waiting import until

pytestmark = pytest.mark.timeout(60)


def open_connections(running: Any) -> set[Any]:
    connections: set[Any] = running.server._calls.connections
    return connections


@pytest.mark.parametrize("padding", [0, 255])
async def test_caller_who_sends_more_than_his_window_is_reset(own: Serve, padding: int) -> None:
    async def wait(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    handlers = {"Wait": grpc.stream_unary_rpc_method_handler(wait)}
    running = await own(handlers | {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.send(frame(HEADERS, END_HEADERS, 1, literals(changed((":path", "/t.T/Wait")))))
        body = message(b"x") if padding else message(bytes(65_531))
        payload = bytes((padding,)) + body + bytes(padding) if padding else body
        for _ in range((4 << 20) // len(payload)):
            peer.send(frame(DATA, 8 if padding else 0, 1, payload))
            await peer.drain()
        await peer.settled()
        assert 1 not in peer.answers
        peer.send(frame(DATA, 8 if padding else 0, 1, payload))
        assert (await peer.answer(1)).reset == FLOW
        peer.request(3, message(b"on"))
        assert (await peer.answer(3)).messages == [b"on"]


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, payload=bytes(8)) * 8000,
        frame(SETTINGS) * 8000,
        b"".join(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88") for _ in range(8000)),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, literals(changed((":path", "/t.T/No")))) * 8000,
    ],
    ids=["pings", "settings", "malformed requests", "refused requests"],
)
async def test_peer_who_asks_and_never_reads_is_dropped(own: Serve, flood: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr("headrace.server.transport.sending._UNREAD", 1 << 20)
    running = await own({"EchoEach": grpc.stream_stream_rpc_method_handler(echo_each)})
    _, writer = await asyncio.open_connection(*running.address.split(":"), limit=1024)
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings([])
    writer.write(greeting)
    async with asyncio.timeout(SECONDS):
        await until(lambda: open_connections(running))
    (connection,) = open_connections(running)
    largest, stream = 0, 1
    async with asyncio.timeout(30):
        while open_connections(running):
            writer.write(numbered(flood, stream))
            stream += 16_000
            await asyncio.sleep(0)
            with_transport = connection.sending.transport
            if with_transport is not None:
                largest = max(largest, with_transport.get_write_buffer_size())
    assert largest < 4 << 20
    writer.transport.abort()
    await asyncio.sleep(0)


def numbered(flood: bytes, first: int) -> bytes:
    """Give each HEADERS frame a stream of its own."""
    if flood[3] != HEADERS:
        return flood
    size = 9 + int.from_bytes(flood[:3])
    one = flood[:size]
    return b"".join(one[:5] + number(first + 2 * index) + one[9:] for index in range(len(flood) // size))


async def test_slow_reader_of_a_large_answer_may_ping(own: Serve) -> None:
    size = 30 << 20

    async def large(request: bytes, context: Any) -> bytes:
        return bytes(size)

    running = await own({"Large": grpc.unary_unary_rpc_method_handler(large)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, WIDEST))
        peer.send(widen(0, WIDEST - DEFAULT_WINDOW))
        peer.request(1, message(b""), path="/t.T/Large")
        async with asyncio.timeout(SECONDS):
            await until(lambda: any(one.sending.paused for one in open_connections(running)))
        peer.send(frame(PING, payload=b"are you?"), settings([]))
        answer = await peer.answer(1)
        assert (len(answer.data), answer.status) == (size + 5, "0")
        await peer.settled()
        assert b"are you?" in [other.payload for other in peer.others if other[0] == PING]
