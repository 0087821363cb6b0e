"""A caller that writes HTTP/2 frame by frame, right or wrong, and shows what comes back."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, CALM = 0, 1, 3, 5, 6, 7, 8, 9, 11
INITIAL_WINDOW, MAX_FRAME = 4, 5
DEFAULT_WINDOW, WIDEST = 65_535, (1 << 31) - 1
SECONDS = 10.0

Fields = Sequence[tuple[str, str]]
REQUEST: Fields = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/Echo"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The first four bytes: an error code, or an increment."""
        return int.from_bytes(self.payload[:4], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def widen(stream: int, size: int) -> bytes:
    return frame(WINDOW, 0, stream, number(size))


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *item) for item in values))


def message(data: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(data)) + data


def literals(fields: Fields) -> bytes:
    """A header block that takes nothing from a table and adds nothing to one."""
    return b"".join(_marked(fields))


def _marked(fields: Fields) -> Iterable[bytes]:
    for name, value in fields:
        key, data = name.encode("latin-1"), value.encode("latin-1")
        yield b"\0" + _size(len(key)) + key + _size(len(data)) + data


def _size(value: int) -> bytes:
    """Write a length as RFC 7541 section 5.1 says, with 7 bits in the first byte."""
    if value < 127:
        return bytes((value,))
    written, value = b"\x7f", value - 127
    while value > 127:
        written, value = written + bytes((value & 127 | 128,)), value >> 7
    return written + bytes((value,))


def changed(*fields: tuple[str, str | None]) -> Fields:
    """The usual request, with these fields in place of those of the same name; None leaves one out."""
    names = {name for name, _ in fields}
    new = [(name, value) for name, value in fields if value is not None]
    pseudo = [item for item in new if item[0].startswith(":")]
    return [
        *pseudo,
        *(item for item in REQUEST if item[0] not in names),
        *(item for item in new if item not in pseudo),
    ]


BLOCK = literals(REQUEST)
BODY = frame(DATA, END_STREAM, 1, message(b"x"))
INTERNAL, UNIMPLEMENTED = "13", "12"


@dataclass
class Answer:
    """What came back on one stream."""

    headers: list[dict[str, str]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    ended: bool = False
    order: list[int] = field(default_factory=list)

    @property
    def status(self) -> str:
        return self.headers[-1].get("grpc-status", "none")

    @property
    def messages(self) -> list[bytes]:
        found, data = [], bytes(self.data)
        while data:
            size = int.from_bytes(data[1:5], "big")
            assert data[0] == 0
            assert len(data) >= 5 + size
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found


class Peer:
    """One connection; what was read is kept in ``answers`` by stream, all else in ``others``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answers: dict[int, Answer] = {}
        self.others: list[Frame] = []
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self._block = b""

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def drain(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.writer.drain()

    def greet(self, *values: tuple[int, int]) -> None:
        self.send(PREFACE, settings(values))

    def request(
        self, stream: int, *bodies: bytes, path: str = "/t.T/Echo", fields: Fields = (), end: bool = True
    ) -> None:
        """Send a whole request: its headers, DATA frames for each of ``bodies``, and the end."""
        block = literals([*changed((":path", path)), *fields])
        self.send(frame(HEADERS, END_HEADERS, stream, block))
        for body in bodies:
            for start in range(0, len(body), 200_000):
                self.send(frame(DATA, 0, stream, body[start : start + 200_000]))
        if end:
            self.send(frame(DATA, END_STREAM, stream))

    async def read(self) -> Frame:
        """Return the next frame, and note it."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readexactly(9)
            size, kind, flags, stream = struct.unpack(">IBBI", b"\0" + head)
            received = Frame(kind, flags, stream, await self.reader.readexactly(size))
        self._note(received)
        return received

    def _note(self, received: Frame) -> None:
        kind, flags, stream, payload = received
        if kind not in {DATA, HEADERS, CONTINUATION, RST}:
            self.others.append(received)
            return
        answer = self.answers.setdefault(stream, Answer())
        answer.order.append(kind)
        if kind == DATA:
            assert not answer.ended, "DATA after the end"
            answer.data += payload
        elif kind == RST:
            answer.reset = received.number
        else:
            self._block += payload
            if flags & END_HEADERS:
                fields = self._decoder.decode(self._block)
                answer.headers.append({str(name): str(value) for name, value in fields})
                self._block = b""
        if kind != RST:
            answer.ended |= bool(flags & END_STREAM) and kind in {DATA, HEADERS}

    async def until(self, kind: int, stream: int = 0, flags: int = 0) -> Frame:
        """Read until such a frame comes."""
        while True:
            received = await self.read()
            if received[0] == kind and received.stream == stream and received.flags & flags == flags:
                return received

    async def answer(self, stream: int) -> Answer:
        """Read until the answer on ``stream`` has ended, with all its headers, or was broken off."""
        answer = self.answers.setdefault(stream, Answer())
        while answer.reset is None and not (answer.ended and not self._block):
            await self.read()
        return answer

    async def settled(self) -> None:
        """Read until all that was sent is dealt with: pings come back, and handlers have had their turns."""
        for turn in range(5):
            self.send(frame(PING, payload=b"settled%d" % turn))
            while (await self.read()).payload != b"settled%d" % turn:
                pass
        self.others = [other for other in self.others if not other.payload.startswith(b"settled")]

    async def goaway(self) -> int:
        """Read until the connection is given up, and its end; return the code."""
        received = await self.until(GOAWAY)
        await self.gone()
        return int.from_bytes(received.payload[4:8], "big")

    async def gone(self) -> None:
        """Read until the connection ends, however it does."""
        async with asyncio.timeout(SECONDS):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def raw_peer(address: str, connected: socket.socket | None = None) -> AsyncIterator[Peer]:
    """Connect to ``host:port``, unless a socket is connected to it."""
    host, _, port = address.rpartition(":")
    if connected is None:
        peer = Peer(*await asyncio.open_connection(host, int(port)))
    else:
        peer = Peer(*await asyncio.open_connection(sock=connected))
    try:
        yield peer
    finally:
        await peer.close()
