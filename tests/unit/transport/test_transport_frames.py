"""Frames as RFC 9113 has them, and those it forbids: what the connection ends with."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve
from unit.transport.raw_peer import (
    ACK,
    CALM,
    CLOSED,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PROTOCOL,
    PUSH,
    REQUEST,
    RST,
    SECONDS,
    SETTINGS,
    SIZE,
    WINDOW,
    Peer,
    changed,
    frame,
    literals,
    message,
    number,
    raw_peer,
    settings,
)
from waiting import until

pytestmark = pytest.mark.timeout(60)
BLOCK = literals(REQUEST)
EACH = literals(changed((":path", "/t.T/EchoEach")))
TOO_LARGE = (1 << 20) + 1
OPEN = frame(HEADERS, END_HEADERS, 1, EACH)
"""Stream 1, whose caller sends on."""


async def test_greeting_says_what_is_taken(peer: Peer) -> None:
    greeting = await peer.read()
    assert (greeting[0], greeting.flags, greeting.stream) == (SETTINGS, 0, 0)
    values = dict(struct.iter_unpack(">HI", greeting.payload))
    assert values[INITIAL_WINDOW] == 4 << 20
    assert values[MAX_FRAME] == TOO_LARGE - 1
    window = await peer.read()
    assert (window[0], window.number) == (WINDOW, (1 << 31) - 1 - 65_535)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"X",
    ],
)
async def test_what_is_not_http2_is_told_so(peer: Peer, sent: bytes) -> None:
    peer.send(sent)
    assert await peer.goaway() == PROTOCOL
    assert b"HTTP/2" in peer.others[-1].payload


async def test_preface_in_pieces_is_taken(peer: Peer) -> None:
    whole = PREFACE + settings([])
    for start in range(0, len(whole), 7):
        peer.send(whole[start : start + 7])
        await asyncio.sleep(0.005)
    await peer.until(SETTINGS, flags=ACK)


async def test_wrong_preface_in_pieces_is_refused(peer: Peer) -> None:
    for start in range(0, 24, 4):
        peer.send((PREFACE[:20] + b"oops")[start : start + 4])
        await asyncio.sleep(0.005)
    assert await peer.goaway() == PROTOCOL


async def test_caller_who_sends_byte_by_byte_is_served(peer: Peer) -> None:
    body = message(b"slow") + message(b"sender")
    frames = OPEN + frame(DATA, PADDED, 1, b"\2" + body + b"\0\0") + frame(DATA, END_STREAM, 1)
    for byte in PREFACE + settings([]) + frame(PING, payload=b"12345678") + frames:
        peer.send(bytes((byte,)))
        await peer.drain()
        await asyncio.sleep(0)
    assert (await peer.answer(1)).messages == [b"slow", b"sender"]


async def test_caller_who_never_greets_is_closed(own: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.server.transport.connection._GREETING_SECONDS", 0.05)
    running = await own()
    async with raw_peer(running.address) as silent, raw_peer(running.address) as polite:
        polite.greet()
        await silent.gone()
        await polite.settled()
    async with asyncio.timeout(SECONDS):
        await until(lambda: not running.server._calls.connections)


BROKEN: dict[str, tuple[bytes, int]] = {
    "frame too large": (frame(DATA, 0, 1, bytes(TOO_LARGE))[:99], SIZE),
    "frame of an unknown kind too large": (frame(99, 0, 0, bytes(TOO_LARGE))[:99], SIZE),
    "data on stream 0": (frame(DATA, 0, 0, b"x"), PROTOCOL),
    "padded data on stream 0": (frame(DATA, PADDED, 0, b"\0x"), PROTOCOL),
    "data on an idle stream": (frame(DATA, 0, 1, b"x"), PROTOCOL),
    "data on an even stream": (frame(HEADERS, END_HEADERS, 3, EACH) + frame(DATA, 0, 2, b"x"), PROTOCOL),
    "data padded with more than it has": (OPEN + frame(DATA, PADDED, 1, b"\5abcd"), PROTOCOL),
    "data padded with nothing": (OPEN + frame(DATA, PADDED, 1, b""), SIZE),
    "headers on stream 0": (frame(HEADERS, END_HEADERS, 0, BLOCK), PROTOCOL),
    "headers on an even stream": (frame(HEADERS, END_HEADERS, 2, BLOCK), PROTOCOL),
    "request on a lower stream": (
        frame(HEADERS, END_HEADERS, 5, EACH) + frame(HEADERS, END_HEADERS, 3, EACH),
        PROTOCOL,
    ),
    "headers padded with more than they have": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + BLOCK[:50]),
        PROTOCOL,
    ),
    "headers without their priority": (frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"1234"), SIZE),
    "continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    "continuation after the end": (OPEN + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    "continuation on another stream": (
        frame(HEADERS, 0, 1, BLOCK[:9]) + frame(CONTINUATION, END_HEADERS, 3, BLOCK[9:]),
        PROTOCOL,
    ),
    "ping within headers": (frame(HEADERS, 0, 1, BLOCK[:9]) + frame(PING, payload=bytes(8)), PROTOCOL),
    "data within headers": (OPEN + frame(HEADERS, 0, 3, BLOCK[:9]) + frame(DATA, 0, 1, b"x"), PROTOCOL),
    "headers within headers": (frame(HEADERS, 0, 1, BLOCK[:9]) + frame(HEADERS, 4, 1, BLOCK), PROTOCOL),
    "unknown kind within headers": (frame(HEADERS, 0, 1, BLOCK[:9]) + frame(99), PROTOCOL),
    "headers that never end": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1, bytes(200_000)) * 2,
        CALM,
    ),
    "priority on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "priority of a wrong size": (frame(PRIORITY, 0, 1, bytes(4)), SIZE),
    "reset of stream 0": (frame(RST, 0, 0, number(8)), PROTOCOL),
    "reset of an idle stream": (frame(RST, 0, 1, number(8)), PROTOCOL),
    "reset of an even stream": (frame(HEADERS, END_HEADERS, 3, EACH) + frame(RST, 0, 2, number(8)), PROTOCOL),
    "reset of a wrong size": (OPEN + frame(RST, 0, 1, b"123"), SIZE),
    "settings on a stream": (frame(SETTINGS, 0, 1), PROTOCOL),
    "settings of a wrong size": (frame(SETTINGS, 0, 0, bytes(5)), SIZE),
    "settings acknowledged with a payload": (frame(SETTINGS, ACK, 0, bytes(6)), SIZE),
    "settings with too wide a window": (settings([(INITIAL_WINDOW, 1 << 31)]), FLOW),
    "settings with too small a frame": (settings([(MAX_FRAME, 16_383)]), PROTOCOL),
    "settings with too large a frame": (settings([(MAX_FRAME, 1 << 24)]), PROTOCOL),
    "settings that push twice": (settings([(2, 2)]), PROTOCOL),
    "push": (frame(PUSH, END_HEADERS, 1, number(2) + BLOCK), PROTOCOL),
    "ping on a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL),
    "ping of a wrong size": (frame(PING, 0, 0, bytes(7)), SIZE),
    "goaway on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "goaway of a wrong size": (frame(GOAWAY, 0, 0, bytes(7)), SIZE),
    "window not widened": (frame(WINDOW, 0, 0, number(0)), PROTOCOL),
    "window too wide": (frame(WINDOW, 0, 0, number((1 << 31) - 65_535)), FLOW),
    "window of an idle stream": (frame(WINDOW, 0, 1, number(1)), PROTOCOL),
    "window of an even stream": (
        frame(HEADERS, END_HEADERS, 3, EACH) + frame(WINDOW, 0, 2, number(1)),
        PROTOCOL,
    ),
    "window of a wrong size": (frame(WINDOW, 0, 0, bytes(5)), SIZE),
}


@pytest.mark.parametrize("name", list(BROKEN))
async def test_broken_connection_ends_with_the_code_of_the_rfc(peer: Peer, name: str) -> None:
    sent, code = BROKEN[name]
    peer.greet()
    peer.send(sent)
    assert await peer.goaway() == code


async def test_size_of_a_frame_is_judged_though_its_head_comes_in_pieces(peer: Peer) -> None:
    peer.greet()
    await peer.settled()
    head = frame(99, 0, 0, bytes(TOO_LARGE))[:9]
    peer.send(head[:4])
    await asyncio.sleep(0.05)
    peer.send(head[4:] + b"x")
    assert await peer.goaway() == SIZE


CAUSES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "window not widened": (lambda stream: frame(WINDOW, 0, stream, number(0)), PROTOCOL),
    "window too wide": (lambda stream: frame(WINDOW, 0, stream, number((1 << 31) - 65_535)), FLOW),
    "trailers that do not end": (
        lambda stream: frame(HEADERS, END_HEADERS, stream, literals([("a", "b")])),
        PROTOCOL,
    ),
    "a second request": (lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, EACH), PROTOCOL),
}


@pytest.mark.parametrize("name", list(CAUSES))
async def test_broken_stream_is_reset_and_the_connection_goes_on(peer: Peer, name: str) -> None:
    make, code = CAUSES[name]
    peer.greet()
    peer.send(OPEN, make(1))
    assert (await peer.answer(1)).reset == code
    peer.request(3, message(b"on"))
    assert (await peer.answer(3)).messages == [b"on"]


@pytest.mark.parametrize(
    "late",
    [frame(DATA, 0, 1, message(b"x")), frame(HEADERS, END_HEADERS | END_STREAM, 1, literals([("a", "b")]))],
)
async def test_frames_after_the_end_of_a_request_reset_its_stream(own: Serve, late: bytes) -> None:
    gate = asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        await gate.wait()
        return b""

    running = await own({"Echo": grpc.unary_unary_rpc_method_handler(wait)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""))
        peer.send(late)
        assert (await peer.answer(1)).reset == CLOSED
        peer.request(3, message(b"3"))
        gate.set()
        assert (await peer.answer(3)).status == "0"


async def test_frames_on_a_closed_stream_are_ignored(peer: Peer) -> None:
    peer.greet()
    peer.request(1, message(b"x"))
    await peer.answer(1)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, literals([("a", "b")]))
    peer.send(frame(DATA, 0, 1, b"x"), frame(WINDOW, 0, 1, number(5)), frame(RST, 0, 1, number(8)), trailers)
    await peer.settled()
    assert peer.answers[1].reset is None


async def test_frames_that_mean_nothing_here_are_ignored(peer: Peer) -> None:
    peer.greet((0x99, 5), (3, 0), (6, 1))
    peer.send(frame(99, 255, 7, b"what"), frame(PRIORITY, 0, 9, bytes(5)), frame(SETTINGS, ACK))
    peer.send(frame(PING, ACK, 0, bytes(8)), frame(GOAWAY, 0, 0, bytes(8) + b"bye"))
    peer.request(1, message(b"x"))
    assert (await peer.answer(1)).messages == [b"x"]


async def test_pings_are_echoed_and_settings_acknowledged(peer: Peer) -> None:
    peer.greet()
    peer.send(frame(PING, payload=b"8 bytes!"), settings([(MAX_FRAME, 20_000)]))
    pong = await peer.until(PING)
    assert (pong.flags, pong.payload) == (ACK, b"8 bytes!")
    await peer.until(SETTINGS, flags=ACK)
    assert sum(other[0] == SETTINGS and other.flags == ACK for other in peer.others) == 2


async def test_reserved_bit_of_stream_numbers_is_ignored(peer: Peer) -> None:
    peer.greet()
    peer.send(frame(HEADERS, END_HEADERS, 1 | 1 << 31, BLOCK))
    peer.send(frame(DATA, END_STREAM, 1 | 1 << 31, message(b"x")))
    assert (await peer.answer(1)).messages == [b"x"]
