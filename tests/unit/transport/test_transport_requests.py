"""Requests over HTTP/2 as gRPC writes them, and such as it does not: what each stream is answered."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve
from unit.transport.raw_peer import (
    BODY,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INTERNAL,
    NO_ERROR,
    PROTOCOL,
    REQUEST,
    RST,
    SECONDS,
    UNIMPLEMENTED,
    Fields,
    Peer,
    changed,
    frame,
    literals,
    message,
    raw_peer,
)

pytestmark = pytest.mark.timeout(60)


def request(fields: Fields, *body: bytes) -> bytes:
    flags = END_HEADERS if body else END_HEADERS | END_STREAM
    return frame(HEADERS, flags, 1, literals(fields)) + b"".join(body)


async def still_serves(peer: Peer) -> None:
    peer.request(3, message(b"on"))
    assert (await peer.answer(3)).messages == [b"on"]


MALFORMED: dict[str, Fields] = {
    "name in upper case": [*REQUEST, ("Name", "x")],
    "name with a space": [*REQUEST, ("na me", "x")],
    "name with a colon": [*REQUEST, ("na:me", "x")],
    "name beyond ascii": [*REQUEST, ("nam\xe9", "x")],
    "name of nothing": [*REQUEST, ("", "x")],
    "value with a line end": [*REQUEST, ("name", "x\r\ny")],
    "value with a nul": [*REQUEST, ("name", "x\0y")],
    "connection": [*REQUEST, ("connection", "close")],
    "transfer-encoding": [*REQUEST, ("transfer-encoding", "chunked")],
    "te with more than trailers": changed(("te", "gzip")),
    "no method": changed((":method", None)),
    "no scheme": changed((":scheme", None)),
    "no path": changed((":path", None)),
    "two paths": [(":path", "/t.T/Other"), *REQUEST],
    "unknown pseudo-header": [(":fun", "x"), *REQUEST],
    "status in a request": [(":status", "200"), *REQUEST],
    "late pseudo-header": [*REQUEST[1:], REQUEST[0]],
}


@pytest.mark.parametrize("name", list(MALFORMED))
async def test_malformed_request_is_reset_and_the_connection_goes_on(peer: Peer, name: str) -> None:
    peer.greet()
    peer.send(request(MALFORMED[name], BODY))
    answer = await peer.answer(1)
    assert (answer.reset, answer.headers) == (PROTOCOL, [])
    await still_serves(peer)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed((":method", "GET")), "405"),
        (changed((":method", "OPTIONS"), ("content-type", None)), "405"),
        (changed(("content-type", "application/json")), "415"),
        (changed(("content-type", "application/grpc-web+proto")), "415"),
        (changed(("content-type", None)), "415"),
    ],
)
@pytest.mark.parametrize("body", [(), (BODY,)], ids=["whole", "begun"])
async def test_what_is_no_grpc_gets_an_http_status(
    peer: Peer, fields: Fields, status: str, body: tuple[bytes, ...]
) -> None:
    peer.greet()
    peer.send(request(fields, *body))
    answer = await peer.answer(1)
    assert answer.headers == [{":status": status}]
    assert answer.ended
    await peer.settled()
    assert answer.reset == (NO_ERROR if body else None)
    await still_serves(peer)


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;v=1"])
async def test_content_types_of_grpc_are_taken(peer: Peer, kind: str) -> None:
    peer.greet()
    peer.send(request(changed(("content-type", kind)), BODY))
    answer = await peer.answer(1)
    assert answer.messages == [b"x"]
    assert answer.headers[0][":status"] == "200"
    assert answer.headers[0]["content-type"] == "application/grpc"
    assert answer.headers[1] == {"grpc-status": "0"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ((), "no message"),
        ((frame(DATA, END_STREAM, 1),), "no message"),
        ((frame(DATA, END_STREAM, 1, message(b"hello")[:4]),), "cut off"),
        ((frame(DATA, END_STREAM, 1, message(b"hello")[:-1]),), "cut off"),
        ((frame(DATA, 0, 1, message(b"x", flag=1)),), "not named"),
        ((frame(DATA, 0, 1, message(b"x", flag=2)),), "not named"),
    ],
)
async def test_request_without_a_whole_message_is_an_internal_error(
    peer: Peer, body: tuple[bytes, ...], reason: str
) -> None:
    peer.greet()
    peer.send(request(REQUEST, *body))
    answer = await peer.answer(1)
    assert answer.status == INTERNAL
    assert reason in answer.headers[-1]["grpc-message"]
    await still_serves(peer)


async def test_stream_that_is_cut_off_is_an_internal_error_and_cancels_its_handler(own: Serve) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def read(requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            async for _ in requests:
                begun.set()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b"all"

    running = await own({"Echo": grpc.stream_unary_rpc_method_handler(read)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b"a"), end=False)
        async with asyncio.timeout(SECONDS):
            await begun.wait()
            peer.send(frame(DATA, END_STREAM, 1, message(b"b")[:-1]))
            assert (await peer.answer(1)).status == INTERNAL
            await cancelled.wait()


async def test_unknown_encoding_is_unimplemented_and_ours_are_named(peer: Peer) -> None:
    peer.greet()
    peer.request(1, message(b"x", flag=1), fields=[("grpc-encoding", "snappy")])
    answer = await peer.answer(1)
    assert answer.status == UNIMPLEMENTED
    assert "snappy" in answer.headers[0]["grpc-message"]
    assert set(answer.headers[0]["grpc-accept-encoding"].split(",")) == {"identity", "deflate", "gzip"}
    await still_serves(peer)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "deflate"]
)
async def test_compressed_and_plain_messages_may_alternate(peer: Peer, encoding: str, compress: Any) -> None:
    peer.greet()
    bodies = [message(compress(b"one"), 1), message(b"two"), message(compress(b""), 1)]
    peer.request(1, *bodies, path="/t.T/EchoEach", fields=[("grpc-encoding", encoding)])
    assert (await peer.answer(1)).messages == [b"one", b"two", b""]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_message_that_is_not_compressed_as_named_is_an_internal_error(
    peer: Peer, encoding: str
) -> None:
    peer.greet()
    peer.request(1, message(b"not so", 1), fields=[("grpc-encoding", encoding)])
    answer = await peer.answer(1)
    assert answer.status == INTERNAL
    assert encoding in answer.headers[0]["grpc-message"]
    await still_serves(peer)


async def test_answer_before_the_end_of_the_request_asks_for_no_more(peer: Peer) -> None:
    peer.greet()
    peer.request(1, message(b"x"), end=False)
    answer = await peer.answer(1)
    while answer.reset is None:
        await peer.read()
    assert (answer.messages, answer.status, answer.reset) == ([b"x"], "0", NO_ERROR)
    assert answer.order == [HEADERS, DATA, HEADERS, RST]
    peer.send(frame(DATA, END_STREAM, 1))
    await still_serves(peer)


async def test_answer_after_the_end_of_the_request_is_not_reset(peer: Peer) -> None:
    peer.greet()
    peer.request(1, message(b"x"))
    await peer.answer(1)
    await peer.settled()
    assert peer.answers[1].reset is None


async def test_trailers_of_a_request_end_it(peer: Peer) -> None:
    peer.greet()
    peer.request(1, message(b"a"), message(b"b"), path="/t.T/EchoEach", end=False)
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, literals([("a", "b")])))
    answer = await peer.answer(1)
    assert (answer.messages, answer.status, answer.reset) == ([b"a", b"b"], "0", None)


async def test_status_of_an_answer_that_cannot_be_serialised_has_its_headers(own: Serve) -> None:
    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"

    running = await own({"Echo": grpc.unary_stream_rpc_method_handler(stream, None, int)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.request(1, message(b""))
        answer = await peer.answer(1)
    assert [(headers[":status"], headers["grpc-status"]) for headers in answer.headers] == [("200", "2")]
