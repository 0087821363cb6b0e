"""Bytes in any pieces, headers in any encoding, and bytes of no meaning at all."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import grpc
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.transport.conftest import Serve, echo, echo_each
from unit.transport.raw_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    REQUEST,
    SECONDS,
    WINDOW,
    frame,
    literals,
    message,
    number,
    raw_peer,
)
from unit.transport.raw_peer import settings as settings_frame
from waiting import until

from headrace.server.transport.frames import BrokenProtocolError
from headrace.server.transport.headers import Head, HeaderReader
from headrace.server.transport.messages import BadMessageError, Compressed, Messages
from headrace.server.transport.receiving import FrameReader

pytestmark = pytest.mark.timeout(60)
KINDS: Final = st.integers(0, 255) | st.integers(0, 10)
BODIES: Final = st.binary(max_size=20) | st.integers(21, 500).map(lambda size: (bytes(range(250)) * 2)[:size])
PARTS: Final = st.tuples(KINDS | st.just(DATA), st.integers(0, 255), st.integers(0, (1 << 32) - 1), BODIES)
FRAMES: Final = PARTS.map(lambda parts: frame(*parts))
CUTS: Final = st.lists(st.integers(0, 60) | st.integers(0, 2000), max_size=30)


class Taker:
    """Notes the frames; the parts of a DATA frame are joined."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._parts: bytes | None = None

    def greeted(self) -> None:
        self.calls.append(("greeted",))

    def take_frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        assert self._parts is None
        self.calls.append((kind, flags, number, bytes(payload)))

    def begin_data(self, number: int, size: int, flags: int) -> None:
        assert self._parts is None
        self._parts = b""
        self.calls.append(("data", number, size, flags))

    def take_data(self, data: memoryview, *, last: bool, padding: int = 0) -> None:
        assert self._parts is not None
        self._parts += bytes(data)
        if last:
            self.calls.append(("ends", self._parts))
            self._parts = None


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[memoryview]:
    """Cut ``data``; the pieces lie in memory that is used again, as that of the connections is."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        buffer = bytearray(data[start:end])
        yield memoryview(buffer)
        buffer[:] = bytes(len(buffer))


def read(data: bytes, cuts: Sequence[int]) -> tuple[list[tuple[Any, ...]], str]:
    """Return what a reader has made of ``data``, and the code that it broke off with."""
    taker = Taker()
    reader = FrameReader(taker)
    try:
        for piece in pieces(data, cuts):
            reader.take(piece)
    except BrokenProtocolError as error:
        return taker.calls, error.code.name
    return taker.calls, ""


@given(st.lists(PARTS, max_size=12), CUTS)
def test_frames_in_any_pieces_are_the_same(sent: list[tuple[int, int, int, bytes]], cuts: list[int]) -> None:
    expected: list[tuple[Any, ...]] = [("greeted",)]
    for kind, flags, stream, payload in sent:
        stream_number = stream & (1 << 31) - 1
        if kind == DATA and not flags & PADDED:
            expected += [("data", stream_number, len(payload), flags), ("ends", payload)]
        else:
            expected.append((kind, flags, stream_number, payload))
    data = PREFACE + b"".join(frame(*parts) for parts in sent)
    assert read(data, cuts) == (expected, "")


@given(st.binary(max_size=200), CUTS, st.booleans())
def test_any_bytes_in_any_pieces_break_off_alike(noise: bytes, cuts: list[int], greet: bool) -> None:
    data = PREFACE + noise if greet else noise
    calls, code = read(data, cuts)
    whole_calls, whole_code = read(data, [])
    if code == whole_code:
        assert calls == whole_calls
    else:  # a wrong preface is known from its first bytes, or only from all of them
        assert not greet


@given(st.lists(FRAMES, max_size=3), st.integers((1 << 20) + 1, (1 << 24) - 1), CUTS)
def test_too_large_a_frame_breaks_off_in_any_pieces(frames: list[bytes], size: int, cuts: list[int]) -> None:
    data = PREFACE + b"".join(frames) + number(size)[1:] + bytes(6)
    assert read(data, cuts) == read(data, [])
    assert read(data, cuts)[1] == "FRAME_SIZE_ERROR"


COMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


def joined(encoding: str, data: bytes, cuts: Sequence[int]) -> list[bytes] | str:
    """Return the messages in ``data``, or what is wrong with one."""
    messages = Messages(encoding)
    try:
        found = [one for piece in pieces(data, cuts) for one in messages.take(piece)]
        return [one.inflate() if isinstance(one, Compressed) else bytes(one) for one in found]
    except BadMessageError as error:
        return str(error)


@given(
    st.sampled_from(list(COMPRESS)),
    st.lists(st.tuples(BODIES, st.booleans()), max_size=8),
    CUTS,
)
def test_messages_in_any_pieces_are_the_same(
    encoding: str, sent: list[tuple[bytes, bool]], cuts: list[int]
) -> None:
    compress = COMPRESS[encoding]
    whole = b"".join(
        message(compress(data), 1) if squeezed and encoding != "identity" else message(data)
        for data, squeezed in sent
    )
    assert joined(encoding, whole, cuts) == [data for data, _ in sent]


@given(st.sampled_from(list(COMPRESS)), st.binary(max_size=100), CUTS)
def test_bytes_that_are_no_messages_are_told_alike(encoding: str, noise: bytes, cuts: list[int]) -> None:
    assert joined(encoding, noise, cuts) == joined(encoding, noise, [])


def test_message_above_what_is_taken_ahead_is_joined_from_pieces() -> None:
    data = random.Random(0).randbytes((4 << 20) + 1)
    messages = Messages("identity")
    found = [
        one
        for piece in pieces(message(data) + message(b"next"), range(0, len(data), 100_001))
        for one in messages.take(piece)
    ]
    assert found == [data, b"next"]


NAMES: Final = st.sampled_from(
    [name for name, _ in REQUEST] + ["a", "b", "c-bin", "user-agent", "grpc-timeout"]
)
VALUES: Final = st.sampled_from(
    ["POST", "GET", "/t.T/Echo", "trailers", "application/grpc", "5S", ""]
) | st.text(st.characters(codec="ascii"), max_size=20)
FIELDS: Final = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=8)
FEW_FIELDS: Final = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", "1", "2", "x" * 60]), st.just(False)),
    max_size=2,
)
"""So few that blocks come again, and mean something else once the table has changed."""
BLOCKS: Final = st.lists(
    st.tuples(
        FEW_FIELDS | FIELDS | st.just([(*field, False) for field in REQUEST]),
        st.integers(0, 3) | st.just(0),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
SHORT_BLOCKS: Final = st.lists(st.tuples(FEW_FIELDS, st.just(0), st.just(True)), min_size=1, max_size=16)


def encoded(blocks: Iterable[tuple[list[tuple[str, str, bool]], int, bool]]) -> list[bytes]:
    """Encode header lists as one connection does: sizes of its table change, some fields are not indexed."""
    encoder = hpack.Encoder()
    written = []
    for fields, size, huffman in blocks:
        encoder.header_table_size = (4096, 4096, 200, 0)[size]
        written.append(encoder.encode(fields, huffman=huffman))
    return written


@given(BLOCKS | SHORT_BLOCKS, st.lists(st.integers(0, 5), max_size=8))
@settings(max_examples=200)
def test_headers_that_are_remembered_are_those_a_fresh_reader_reads(
    blocks: list[Any], again: list[int]
) -> None:
    encoder_blocks = encoded([*blocks, *(blocks[index % len(blocks)] for index in again)])
    reader = HeaderReader()
    for count, block in enumerate(encoder_blocks, 1):
        fresh: Head | None = None
        unmemorable = HeaderReader()
        for earlier in encoder_blocks[:count]:
            unmemorable._known.clear()
            fresh = unmemorable.read(earlier)
        assert reader.read(block) == fresh


@given(st.lists(st.binary(max_size=80), max_size=5))
@settings(max_examples=300)
def test_any_bytes_as_headers_raise_nothing_but_broken_protocol(blocks: list[bytes]) -> None:
    reader = HeaderReader()
    try:
        for block in blocks:
            head = reader.read(block)
            assert reader.read(block) == head or not reader._known
    except BrokenProtocolError:
        return


OPENINGS: Final = (
    b"",
    frame(HEADERS, END_HEADERS, 1, literals(REQUEST)),
    frame(HEADERS, END_HEADERS, 1, literals([*REQUEST[:2], (":path", "/t.T/EchoEach"), *REQUEST[3:]])),
)


def noise(chance: random.Random) -> bytes:
    """Write bytes that are frames to some extent."""
    likely = (0, 1, 3, 5, chance.getrandbits(32))
    parts = [chance.choice(OPENINGS)]
    for _ in range(chance.randrange(30)):
        payload = chance.choice(
            (chance.randbytes(chance.randrange(40)), message(b"x" * chance.randrange(9)), number(1), bytes(8))
        )
        parts.append(
            frame(chance.randrange(11), chance.choice((0, 1, 4, 5, 8)), chance.choice(likely), payload)
        )
    if chance.random() < 0.3:
        parts.append(chance.randbytes(chance.randrange(200)))
    return b"".join(parts)


async def test_noise_of_some_callers_does_not_disturb_the_rpcs_of_others(own: Serve, caplog: Any) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
    }
    running = await own(handlers)
    chance = random.Random(26)
    for index in range(300):
        async with raw_peer(running.address) as peer:
            peer.send(PREFACE, settings_frame([]) if index % 7 else b"", noise(chance))
            if index % 3 == 0:
                peer.send(frame(WINDOW, 0, 0, number(1)), frame(DATA, END_STREAM, 1))
            await peer.drain()
            if index % 2:
                await asyncio.sleep(0)
        if index % 20 == 0:
            assert await running.unary_unary("Echo")(b"on", timeout=SECONDS) == b"on"
    await running.channel.close()
    async with asyncio.timeout(SECONDS):
        await until(lambda: not running.server._calls.connections and not running.server._calls.tasks)
    assert failures == []
