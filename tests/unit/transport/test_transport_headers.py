"""Header blocks: in pieces, padded, in tables, and such as cannot be read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import grpc
import hpack
import pytest
from unit.transport.conftest import Serve, echo
from unit.transport.raw_peer import (
    BLOCK,
    BODY,
    CALM,
    COMPRESSION,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME,
    PADDED,
    PRIORITISED,
    PROTOCOL,
    REQUEST,
    Peer,
    changed,
    frame,
    literals,
    message,
    raw_peer,
)

pytestmark = pytest.mark.timeout(60)


async def test_headers_with_padding_and_priority_are_read(peer: Peer) -> None:
    peer.greet()
    flags = END_HEADERS | PADDED | PRIORITISED
    peer.send(frame(HEADERS, flags, 1, b"\4" + bytes(5) + BLOCK + bytes(4)))
    peer.send(frame(DATA, END_STREAM | PADDED, 1, b"\xff" + message(b"x") + bytes(255)))
    assert (await peer.answer(1)).messages == [b"x"]
    peer.send(frame(HEADERS, END_HEADERS | PRIORITISED, 3, bytes(5) + BLOCK))
    peer.send(frame(DATA, END_STREAM | PADDED, 3, b"\0" + message(b"y")))
    assert (await peer.answer(3)).messages == [b"y"]


@pytest.mark.parametrize("cuts", [(0,), (9,), (0, 0, 9, 9, 40), tuple(range(1, len(BLOCK)))])
async def test_headers_go_on_in_continuations(peer: Peer, cuts: tuple[int, ...]) -> None:
    peer.greet()
    edges = (0, *cuts, len(BLOCK))
    parts = [BLOCK[start:end] for start, end in pairwise(edges)]
    peer.send(frame(HEADERS, 0, 1, parts[0]))
    for part in parts[1:-1]:
        peer.send(frame(CONTINUATION, 0, 1, part))
    peer.send(frame(CONTINUATION, END_HEADERS, 1, parts[-1]), BODY)
    assert (await peer.answer(1)).messages == [b"x"]


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (b"\x80", COMPRESSION),  # index 0
        (b"\xbe", COMPRESSION),  # an empty table's first entry
        (b"\x00\x05ab", COMPRESSION),  # cut off
        (b"\x3f\xff\xff\xff\xff\x7f", COMPRESSION),  # a table of gigabytes
        (b"\xff" + b"\xff" * 40 + b"\x00", COMPRESSION),  # a number without an end
        (b"\x00\x81\x00\x01x", COMPRESSION),  # Huffman code that ends wrongly
        (literals([("long", "x" * 250_000)])[:-1], COMPRESSION),
        (literals([("long", "x" * 262_110)]), CALM),
        (hpack.Encoder().encode([("a", "x" * 4000)]) + b"\xbe" * 80, CALM),  # 84 times its size
    ],
)
async def test_headers_that_cannot_be_read_end_the_connection(peer: Peer, block: bytes, code: int) -> None:
    peer.greet()
    peer.send(frame(HEADERS, END_HEADERS, 1, block))
    assert await peer.goaway() == code


async def test_large_headers_reach_the_handler_and_answers_go_on_in_continuations(own: Serve) -> None:
    async def back(request: bytes, context: Any) -> bytes:
        fields = dict(context.invocation_metadata())
        await context.send_initial_metadata((("back", fields["long"]),))
        context.set_trailing_metadata((("back", fields["long"]),))
        return b"x"

    running = await own({"Echo": grpc.unary_unary_rpc_method_handler(back)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        peer.send(frame(HEADERS, END_HEADERS, 1, literals([*REQUEST, ("long", "x" * 100_000)])), BODY)
        answer = await peer.answer(1)
        assert answer.order == [HEADERS, *[CONTINUATION] * 6, DATA, HEADERS, *[CONTINUATION] * 6]
        assert [headers["back"] for headers in answer.headers] == ["x" * 100_000] * 2
    async with raw_peer(running.address) as peer:
        peer.greet((MAX_FRAME, 200_000))
        peer.send(frame(HEADERS, END_HEADERS, 1, literals([*REQUEST, ("long", "x" * 100_000)])), BODY)
        assert (await peer.answer(1)).order == [HEADERS, DATA, HEADERS]


async def test_binary_metadata_is_read_with_and_without_padding_and_joined(own: Serve) -> None:
    async def look(request: bytes, context: Any) -> bytes:
        return repr([value for key, value in context.invocation_metadata() if key == "a-bin"]).encode()

    running = await own({"Echo": grpc.unary_unary_rpc_method_handler(look)})
    async with raw_peer(running.address) as peer:
        peer.greet()
        fields = [("a-bin", "AQ=="), ("a-bin", "AQ"), ("a-bin", "AQ,Ag==,"), ("a-bin", "")]
        peer.send(frame(HEADERS, END_HEADERS, 1, literals([*REQUEST, *fields])), BODY)
        (seen,) = (await peer.answer(1)).messages
    assert seen == repr([b"\1", b"\1", b"\1", b"\2", b"", b""]).encode()


async def test_table_of_the_connection_is_kept_over_bad_requests(own: Serve) -> None:
    running = await own({"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    encoder = hpack.Encoder()
    async with raw_peer(running.address) as peer:
        peer.greet()
        for stream, fields in ((1, [*REQUEST, ("Upper", "x")]), (3, changed(("te", "no"))), (5, REQUEST)):
            peer.send(frame(HEADERS, END_HEADERS, stream, encoder.encode(fields)))
            peer.send(frame(DATA, END_STREAM, stream, message(b"x")))
        assert (await peer.answer(5)).messages == [b"x"]
        assert [peer.answers[stream].reset for stream in (1, 3)] == [PROTOCOL] * 2
