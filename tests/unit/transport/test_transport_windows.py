"""What is sent within the peer's windows, and how slow and hostile peers are borne."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve
from unit.transport.raw_peer import (
    CANCEL,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    SECONDS,
    SETTINGS,
    WIDEST,
    WINDOW,
    Peer,
    changed,
    frame,
    literals,
    message,
    raw_peer,
    settings,
    widen,
)
from waiting import until

pytestmark = pytest.mark.timeout(60)


def received(peer: Peer, stream: int) -> int:
    return len(peer.answers[stream].data) if stream in peer.answers else 0


async def test_answer_waits_for_a_window_of_0_and_its_trailers_for_it(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 0))
    peer.request(1, message(b"hello"))
    await peer.settled()
    assert (received(peer, 1), peer.answers[1].order) == (0, [HEADERS])
    for expected in range(1, 10):
        peer.send(widen(1, 1))
        await peer.settled()
        assert received(peer, 1) == expected
        assert not peer.answers[1].ended
    peer.send(widen(1, 1))
    answer = await peer.answer(1)
    assert answer.messages == [b"hello"]
    assert answer.order == [HEADERS, *[DATA] * 10, HEADERS]


async def test_answer_of_no_bytes_needs_a_window_for_its_prefix(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 4))
    peer.request(1, message(b""))
    await peer.settled()
    assert received(peer, 1) == 4
    peer.send(widen(1, 1))
    assert (await peer.answer(1)).messages == [b""]


async def test_status_needs_no_window(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 0))
    peer.request(1, message(b""), path="/t.T/Unknown")
    assert (await peer.answer(1)).status == "12"


@pytest.mark.parametrize("window", [1, 7, 1000])
async def test_tiny_windows_carry_a_whole_answer(peer: Peer, window: int) -> None:
    peer.greet((INITIAL_WINDOW, window))
    data = bytes(index & 255 for index in range(window * 40))
    peer.request(1, message(data))
    while not peer.answers or not peer.answers[1].ended:
        last = await peer.read()
        if last[0] == DATA:
            assert len(last.payload) <= window
            peer.send(widen(1, len(last.payload)), widen(0, len(last.payload)))
    assert peer.answers[1].messages == [data]


async def test_initial_window_that_changes_in_flight_moves_open_streams(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 100))
    peer.request(1, message(bytes(995)))
    await peer.settled()
    assert received(peer, 1) == 100
    peer.send(settings([(INITIAL_WINDOW, 150)]))
    await peer.settled()
    assert received(peer, 1) == 150
    peer.send(settings([(INITIAL_WINDOW, 50)]))  # the stream's is -100 now
    peer.send(widen(1, 100))
    await peer.settled()
    assert received(peer, 1) == 150
    peer.send(widen(1, 1))
    await peer.settled()
    assert received(peer, 1) == 151
    peer.request(3, message(bytes(995)))
    await peer.settled()
    assert received(peer, 3) == 50
    peer.send(settings([(INITIAL_WINDOW, 0), (INITIAL_WINDOW, 5000)]))
    for stream in (1, 3):
        assert (await peer.answer(stream)).messages == [bytes(995)]


async def test_stream_without_a_window_lets_others_pass(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 0))
    for stream in (1, 3, 5):
        peer.request(stream, message(b"hello"))
    peer.send(widen(3, 10))
    assert (await peer.answer(3)).messages == [b"hello"]
    assert [received(peer, stream) for stream in (1, 5)] == [0, 0]
    peer.send(widen(5, 10))
    assert (await peer.answer(5)).messages == [b"hello"]


async def test_streams_share_a_tiny_window_of_the_connection(peer: Peer) -> None:
    peer.greet((INITIAL_WINDOW, 1 << 20))
    peer.request(1, message(bytes(DEFAULT_WINDOW - 5)))  # uses up the connection's
    await peer.answer(1)
    streams = range(3, 23, 2)
    for stream in streams:
        peer.request(stream, message(bytes(395)))
    await peer.settled()
    assert sum(received(peer, stream) for stream in streams) == 0
    for _ in range(len(streams)):
        peer.send(widen(0, 40))
        await peer.settled()
    assert {received(peer, stream) for stream in streams} == {40}
    while any(received(peer, stream) < 400 for stream in streams):
        peer.send(widen(0, 40))
        await peer.settled()
    for stream in streams:
        assert (await peer.answer(stream)).messages == [bytes(395)]


async def test_answer_larger_than_all_windows_is_sent_as_they_widen(peer: Peer) -> None:
    peer.greet((MAX_FRAME, 20_000))
    await peer.until(SETTINGS, flags=1)
    data = bytes(1_000_000)
    peer.request(1, message(data))
    await peer.settled()
    assert received(peer, 1) == DEFAULT_WINDOW
    peer.send(widen(1, WIDEST - DEFAULT_WINDOW))
    await peer.settled()
    assert received(peer, 1) == DEFAULT_WINDOW
    for _ in range(3):
        peer.send(widen(0, 100_000))
    await peer.settled()
    assert received(peer, 1) == DEFAULT_WINDOW + 300_000
    assert not peer.answers[1].ended
    peer.send(widen(0, 700_000))
    answer = await peer.answer(1)
    assert answer.messages == [data]
    assert answer.order.count(DATA) > len(data) // 20_000


async def test_handler_waits_for_the_windows_of_its_caller(own: Serve) -> None:
    made: list[int] = []

    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for index in range(100):
            made.append(index)
            yield bytes(995)

    running = await own({"Pour": grpc.unary_stream_rpc_method_handler(pour)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, 2500))
        peer.request(1, message(b""), path="/t.T/Pour")
        await peer.settled()
        assert (len(made), received(peer, 1)) == (3, 2500)
        peer.send(widen(1, 1000))
        await peer.settled()
        assert (len(made), received(peer, 1)) == (4, 3500)
        peer.send(widen(1, 1_000_000), widen(0, 1_000_000))
        assert len((await peer.answer(1)).messages) == 100


async def test_answer_that_waits_for_its_caller_ends_at_the_deadline(own: Serve) -> None:
    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(95)

    running = await own({"Pour": grpc.unary_stream_rpc_method_handler(pour)})
    async with raw_peer(running.address) as peer:
        peer.greet((INITIAL_WINDOW, 150))
        peer.request(1, message(b""), path="/t.T/Pour", fields=[("grpc-timeout", "50m")])
        answer = await peer.answer(1)
        assert answer.reset == CANCEL
        assert not any(connection._streams for connection in running.server._calls.connections)
        async with asyncio.timeout(SECONDS):
            await until(lambda: not running.server._calls.tasks)


async def test_caller_is_given_the_window_back_as_his_requests_are_read(own: Serve) -> None:
    go = asyncio.Event()

    async def sip(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await go.wait()
        return b"%d" % sum([len(request) async for request in requests])

    running = await own({"Sip": grpc.stream_unary_rpc_method_handler(sip)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.send(frame(HEADERS, END_HEADERS, 1, literals(changed((":path", "/t.T/Sip")))))
        chunk = frame(DATA, 0, 1, message(bytes((128 << 10) - 5)))
        for _ in range(32):  # 4 MiB: all that may be sent
            peer.send(chunk)
            await peer.drain()
        await peer.settled()
        assert not [other for other in peer.others if (other[0], other.stream) == (WINDOW, 1)]
        go.set()
        while sum(other.number for other in peer.others if (other[0], other.stream) == (WINDOW, 1)) < 4 << 20:
            await peer.read()
        peer.send(chunk, frame(DATA, END_STREAM, 1))
        assert (await peer.answer(1)).messages == [b"%d" % (33 * ((128 << 10) - 5))]
