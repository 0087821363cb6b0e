"""How a server stops, as its callers' connections see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Gate, Serve
from unit.transport.raw_peer import (
    GOAWAY,
    INITIAL_WINDOW,
    PING,
    REFUSED,
    SECONDS,
    WINDOW,
    frame,
    message,
    number,
    raw_peer,
)
from waiting import until

pytestmark = pytest.mark.timeout(60)


async def test_goaway_comes_twice_and_between_rpcs_are_still_served(own: Serve) -> None:
    gate = Gate()
    running = await own(gate.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b"1"), path="/t.T/Wait")
        await gate.holds(1)
        stopping = asyncio.create_task(running.server.stop(30))
        first = await peer.until(GOAWAY)
        assert first.payload == number((1 << 31) - 1) + number(0)
        ping = await peer.until(PING)
        peer.request(3, message(b"3"))  # not yet acknowledged: the caller may not have heard
        assert (await peer.answer(3)).messages == [b"3"]
        peer.send(frame(PING, 1, 0, ping.payload))
        second = await peer.until(GOAWAY)
        assert second.payload == number(3) + number(0)
        peer.request(5, message(b"5"))
        assert (await peer.answer(5)).reset == REFUSED
        gate.go.set()
        assert (await peer.answer(1)).messages == [b"1"]
        await peer.gone()
    async with asyncio.timeout(SECONDS):
        await stopping


async def test_caller_who_does_not_acknowledge_is_refused_later_too(
    own: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.transport.closing._ACKNOWLEDGE_SECONDS", 0.1)
    gate = Gate()
    running = await own(gate.handlers)
    async with raw_peer(running.address) as peer:
        await peer.read()
        (connection,) = await connected(running)
        connection.drain()
        await peer.until(GOAWAY)
        peer.greet()  # only now: this must not put the refusal off
        assert (await peer.until(GOAWAY)).payload == number(0) + number(0)


async def test_answer_that_is_being_written_arrives_though_its_handler_is_done(own: Serve) -> None:
    size = 30 << 20

    async def large(request: bytes, context: Any) -> bytes:
        return bytes(size)

    running = await own({"Large": grpc.unary_unary_rpc_method_handler(large)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, (1 << 31) - 1))
        peer.send(frame(WINDOW, 0, 0, number((1 << 31) - 1 - 65_535)))
        peer.request(1, message(b""), path="/t.T/Large")
        await peer.read()
        async with asyncio.timeout(SECONDS):
            await until(lambda: not running.server._calls.tasks and 1 not in streams(running))
        stopping = asyncio.create_task(running.server.stop(30))
        await asyncio.sleep(0.2)
        assert not stopping.done()  # the process may end after it
        answer = await peer.answer(1)
        assert len(answer.data) == size + 5
        assert answer.status == "0"
        await peer.gone()
        await stopping


def streams(running: Any) -> set[int]:
    return {number for connection in running.server._calls.connections for number in connection._streams}


async def test_caller_who_does_not_read_is_not_waited_for_long(
    own: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.transport.closing._CLOSING_SECONDS", 0.1)

    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    running = await own({"Pour": grpc.unary_stream_rpc_method_handler(pour)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, (1 << 31) - 1))
        peer.send(frame(WINDOW, 0, 0, number((1 << 31) - 1 - 65_535)))
        peer.request(1, message(b""), path="/t.T/Pour")
        (connection,) = await connected(running)
        async with asyncio.timeout(SECONDS):
            await until(lambda: connection.sending.paused)
            await running.server.stop(0.1)
        assert not running.server._calls.connections


async def connected(running: Any) -> set[Any]:
    connections: set[Any] = running.server._calls.connections
    async with asyncio.timeout(SECONDS):
        await until(lambda: connections)
    return connections


async def test_connection_that_is_accepted_after_the_stop_is_turned_away(own: Serve) -> None:
    running = await own(Gate().handlers)
    running.server._calls.stopping = True  # as when it was accepted just before, and made just after
    async with raw_peer(running.address) as peer:
        peer.greet()
        assert await peer.goaway() == 0
