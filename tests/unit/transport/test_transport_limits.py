"""What callers can cost: memory that they only claim, frames without content, answers not taken."""

from __future__ import annotations

import asyncio
import gc
import gzip
import random
import socket
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import hpack
import pytest
from grpc_health.v1 import health_pb2
from unit.transport.conftest import Gate, Serve, echo, echo_each, failed
from unit.transport.raw_peer import (
    CALM,
    DATA,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW,
    PING,
    REFUSED,
    SECONDS,
    SETTINGS,
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

from headrace.server.services.health import LIVENESS, Health
from headrace.server.transport.headers import HeaderReader
from headrace.server.transport.messages import Compressed, Messages

pytestmark = pytest.mark.timeout(60)
ECHO = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}


async def answers(call: Any) -> list[bytes]:
    """Return the one answer of a call, or all of several."""
    return [await call] if isinstance(call, grpc.aio.UnaryUnaryCall) else [answer async for answer in call]


def test_claimed_size_takes_no_memory() -> None:
    incoming = Messages("identity")
    assert not incoming.take(memoryview(b"\0" + number((1 << 32) - 1) + b"abc"))
    assert incoming._body is not None
    assert incoming._body.startswith(b"abc")
    assert len(incoming._body) <= 4 * 3
    assert not incoming.take(memoryview(bytes(1000)))
    assert len(incoming._body) <= 4 * 1003


def test_a_message_of_many_pieces_is_joined_whatever_their_sizes() -> None:
    sent = random.Random(5).randbytes(300_000)
    for most in (1, 7, 1000, 70_000, 300_005):
        incoming, draw = Messages("identity"), random.Random(most)
        data, position, found = memoryview(message(sent) + message(b"") + message(b"next")), 0, []
        while position < len(data):
            # the memory of a piece is used again for the next one
            piece = bytearray(data[position : position + draw.randint(1, most)])
            found += incoming.take(memoryview(piece))
            position += len(piece)
            piece[:] = bytes(len(piece))
        assert found == [sent, b"", b"next"]
        assert not incoming.partial


async def test_small_message_that_inflates_without_end_is_refused(
    own: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.transport.messages._INFLATED", 1 << 20)
    running = await own(ECHO)
    call = running.unary_unary("Echo")
    assert len(await call(bytes(1 << 20), compression=grpc.Compression.Gzip)) == 1 << 20
    error = await failed(call(bytes((1 << 20) + 1), compression=grpc.Compression.Gzip))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than 1048576 bytes" in (error.details() or "")


async def test_compressed_message_that_is_cut_off_is_refused(own: Serve) -> None:
    running = await own(ECHO)
    async with raw_peer(running.address) as peer:
        peer.greet()
        cut = gzip.compress(bytes(1000))[:-8]
        peer.request(1, message(cut, 1), fields=[("grpc-encoding", "gzip")], path="/t.T/Echo")
        answer = await peer.answer(1)
    assert answer.status == str(grpc.StatusCode.INTERNAL.value[0])


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_large_compressed_message_does_not_hold_up_others(
    own: Serve, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    held, inflate = threading.Event(), Compressed.inflate

    def slow(self: Compressed, most: int = 0) -> bytes:
        if not most:
            assert held.wait(SECONDS)
        return inflate(self, most)

    monkeypatch.setattr(Compressed, "inflate", slow)
    running = await own({**ECHO, "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each)})
    large = bytes(100_000)
    if kind == "unary_unary":
        call = running.unary_unary("Echo")(large, compression=grpc.Compression.Gzip)
    else:
        call = running.stream_stream("EchoEach")(iter([large]), compression=grpc.Compression.Gzip)
    waiting = asyncio.ensure_future(answers(call))
    for _ in range(3):
        assert await running.unary_unary("Echo")(b"small", compression=grpc.Compression.Gzip) == b"small"
    assert not waiting.done()
    held.set()
    assert await waiting == [large]


async def test_large_message_that_cannot_be_inflated_is_refused(own: Serve) -> None:
    running = await own({**ECHO, "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each)})
    broken = bytearray(gzip.compress(random.Random(0).randbytes(100_000)))
    broken[50_000:50_100] = bytes(100)
    async with raw_peer(running.address) as peer:
        peer.greet()
        for stream, path in ((1, "/t.T/Echo"), (3, "/t.T/EchoEach")):
            peer.request(stream, message(bytes(broken), 1), fields=[("grpc-encoding", "gzip")], path=path)
        refusals = [await peer.answer(1), await peer.answer(3)]
    for answer in refusals:
        assert answer.status == str(grpc.StatusCode.INTERNAL.value[0])
        assert "not gzip" in answer.headers[0]["grpc-message"]


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, payload=bytes(8)) * 10_001,
        frame(SETTINGS) * 101,
        frame(2, 0, 1, bytes(5)) * 10_001,
        frame(HEADERS, END_HEADERS, 1, literals(changed((":path", "/t.T/Echo"))))
        + frame(DATA, 0, 1) * 10_001,
        frame(HEADERS, 0, 1) + frame(9, 0, 1) * 10_001,
    ],
    ids=["pings", "settings", "priorities", "empty data", "empty continuations"],
)
async def test_frames_that_carry_nothing_are_limited(own: Serve, flood: bytes) -> None:
    running = await own(ECHO)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.send(flood)
        assert await peer.goaway() == CALM
    assert await running.unary_unary("Echo")(b"others") == b"others"


async def test_rpcs_of_one_connection_are_limited(own: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.server.transport.connection._STREAMS", 2)
    gate = Gate()
    running = await own(gate.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        for stream in (1, 3, 5):
            peer.request(stream, message(b"%d" % stream), path="/t.T/Wait")
        assert (await peer.answer(5)).reset == REFUSED
        gate.go.set()
        assert (await peer.answer(1)).messages == [b"1"]
        peer.request(7, message(b"7"), path="/t.T/Wait")
        assert (await peer.answer(7)).messages == [b"7"]


async def test_peer_with_a_smaller_header_table_is_told_that_it_is_not_used(own: Serve) -> None:
    running = await own(ECHO)
    async with raw_peer(running.address) as peer:
        peer.greet((1, 0))
        peer.request(1, message(b"a"), path="/t.T/Echo")
        first = await peer.until(HEADERS, 1)
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 0
        assert (b":status", b"200") in list(decoder.decode(first.payload, raw=True))
        assert (await peer.answer(1)).messages == [b"a"]
        peer.request(3, message(b"b"), path="/t.T/Echo")
        assert (await peer.until(HEADERS, 3)).payload[0] == 0x88  # said once


def test_head_that_is_large_is_not_kept() -> None:
    encoder, reader = hpack.Encoder(), HeaderReader()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t.T/Echo"), ("a", "b" * 200)]
    reader.read(encoder.encode(fields))
    reader.read(encoder.encode(fields))
    assert len(reader._known) == 1
    reader.read(encoder.encode(fields + [("a", "b" * 200)] * 100))
    assert len(reader._known) == 1


async def test_second_message_of_a_unary_request_is_not_kept(own: Serve) -> None:
    gate = Gate()
    running = await own(gate.handlers)
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.send(frame(HEADERS, END_HEADERS, 1, literals(changed((":path", "/t.T/Wait")))))
        peer.send(frame(DATA, 0, 1, message(b"1")), frame(DATA, 0, 1, message(bytes(1000))))
        await peer.settled()
        (connection,) = running.server._calls.connections
        assert not connection._streams[1]._messages
        gate.go.set()
        assert (await peer.answer(1)).messages == [b"1"]


async def test_window_that_settings_widen_lets_answers_go_on(own: Serve) -> None:
    async def large(request: bytes, context: Any) -> bytes:
        return bytes(1000)

    running = await own({"Large": grpc.unary_unary_rpc_method_handler(large)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, 10))
        peer.request(1, message(b""), path="/t.T/Large")
        peer.request(3, message(b""), path="/t.T/Large")
        await peer.settled()
        peer.send(settings([(INITIAL_WINDOW, 0)]), widen(1, 5))  # 5 beyond what is allowed now
        await peer.settled()
        assert [len(peer.answers[stream].data) for stream in (1, 3)] == [10, 10]
        peer.send(settings([(INITIAL_WINDOW, 5), (INITIAL_WINDOW, 2000)]))
        for stream in (1, 3):
            assert (await peer.answer(stream)).messages == [bytes(1000)]


async def test_answers_in_the_kernels_hands_arrive_though_the_server_stops(own: Serve) -> None:
    size = 1 << 20

    async def large(request: bytes, context: Any) -> bytes:
        return bytes(size)

    running = await own({"Large": grpc.unary_unary_rpc_method_handler(large)})
    host, port = running.address.rsplit(":", 1)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    async with raw_peer(running.address, sock) as peer:
        peer.greet((INITIAL_WINDOW, 2 * size))
        peer.send(widen(0, 2 * size))
        peer.request(1, message(b""), path="/t.T/Large")
        calls = running.server._calls
        async with asyncio.timeout(SECONDS):
            await until(lambda: calls.connections and not calls.tasks)
        stopping = asyncio.create_task(running.server.stop(30))
        for _ in range(20):
            peer.send(widen(0, 1))  # what breaks off a connection that is closed already
            await peer.drain()
            await asyncio.sleep(0.01)
        assert len((await peer.answer(1)).data) == size + 5
        await peer.gone()
        await stopping


async def test_watcher_who_does_not_read_holds_up_nobody(own: Serve) -> None:
    running = await own({})
    health = Health({})
    health.register(running.server)
    health.live(alive=True)
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, 0))
        watched = health_pb2.HealthCheckRequest(service=LIVENESS).SerializeToString()
        peer.request(1, message(watched), path="/grpc.health.v1.Health/Watch")
        await peer.settled()
        states = (False, True, False)
        for state in states:
            health.live(alive=state)
        peer.send(widen(1, 1000))
        async with asyncio.timeout(SECONDS):
            while len(peer.answers[1].messages) < 2:  # the first, and the last: those between were missed
                await peer.read()
        answers = [
            health_pb2.HealthCheckResponse.FromString(each).status for each in peer.answers[1].messages
        ]
        assert answers == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_requests_of_a_handler_that_returns_early_are_closed(own: Serve) -> None:
    closed = asyncio.Event()

    async def first(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await anext(requests)

    running = await own({"First": grpc.stream_unary_rpc_method_handler(first)})

    async def each() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    assert await running.stream_unary("First")(each(), timeout=SECONDS) == b"x"
    async with asyncio.timeout(SECONDS):
        await closed.wait()


async def test_connection_that_is_gone_needs_no_collector(own: Serve) -> None:
    running = await own(ECHO)
    connections = running.server._calls.connections
    gc.collect()
    gc.disable()
    try:
        async with raw_peer(running.address) as peer:
            peer.greet()
            peer.request(1, message(b"a"), path="/t.T/Echo")
            assert (await peer.answer(1)).messages == [b"a"]
            peer.send(frame(HEADERS, END_HEADERS, 3, literals(changed((":path", "/t.T/Echo")))))
            peer.send(frame(DATA, 0, 3, message(bytes(100)))[:-1])  # it leaves within a frame
            await peer.drain()
            kept: Any = weakref.ref(*connections)
            async with asyncio.timeout(SECONDS):
                await until(lambda: 3 in kept()._streams)
        async with asyncio.timeout(SECONDS):
            await until(lambda: kept() is None)
    finally:
        gc.enable()
