"""Callers over gRPC that speak just enough HTTP/2: unary calls, one at a time on a connection.

A grpc.aio client costs as much as a server does, and would take those cores from it; load generators in
compiled languages do not. This one sends the frames that they send, and refuses whatever it does not expect.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, cast

from benchmarks.closed_loop import Ask
from benchmarks.http_client import AnswerError
from benchmarks.load_job import Job

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
_DEFAULT_WINDOW: Final = 65_535
_DEFAULT_FRAME: Final = 16_384
_LARGEST_WINDOW: Final = 2**31 - 1
_REFRESH: Final = 2**30
"""Received bytes after which the connection's window is opened again."""

_HEADER: Final = 9
_OK: Final = b"grpc-status\x010"
"""The trailer of success as it is written when the header table has size 0: nothing is indexed."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write one frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Write the nine bytes before a frame's payload."""
    return struct.pack(">HBBBI", length >> 8, length & 255, kind, flags, stream)


def literal(name: str, value: str) -> bytes:
    """Write a header field that is not to be indexed."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    raw = text.encode("ascii")
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    if len(raw) >= 127 + 128:
        raise ValueError(f"header text of {len(raw)} bytes; at most 254 are written")
    return bytes((127, len(raw) - 127)) + raw


class Connection(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self, job: Job, messages: Mapping[bytes, bytes]) -> None:
        """Call ``job.target``; ``messages`` has each body as gRPC frames it.

        ``sink``, when set, gets the payload of every DATA frame of the answer.
        """
        self.sink: Callable[[bytes], None] | None = None
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", job.target),
            (":authority", job.address),
        ]
        fields += [("te", "trailers"), ("content-type", "application/grpc"), *job.headers]
        self._block = b"".join(literal(name, value) for name, value in fields)
        self._messages = messages
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._stream = -1
        self._max_frame = _DEFAULT_FRAME
        self._initial_window = _DEFAULT_WINDOW
        self._connection_window = _DEFAULT_WINDOW
        self._stream_window = 0
        self._unsent = memoryview(b"")
        self._consumed = 0
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet: no push, no header table, windows as wide as they can be."""
        self._transport = cast("asyncio.Transport", transport)
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        payload = b"".join(struct.pack(">HI", *setting) for setting in settings)
        window = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._write(PREFACE + frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, window))

    def ask(self, body: bytes) -> Awaitable[None]:
        """Begin a call; the future resolves when it has ended with status OK.

        Raises:
            AnswerError: the connection is gone.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise AnswerError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._stream += 2
        self._stream_window = self._initial_window
        head = frame(HEADERS, END_HEADERS, self._stream, self._block)
        self._unsent = memoryview(self._messages[body])
        self._send(head)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete."""
        received = self._received
        received += data
        position = 0
        while len(received) - position >= _HEADER:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBI", received, position)
            end = position + _HEADER + (high << 8 | low)
            if len(received) < end:
                break
            self._take(kind, flags, stream, bytes(received[position + _HEADER : end]))
            position = end
        del received[:position]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call under way."""
        self._finish(f"connection lost: {exc}")

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._consume(len(payload))
            if self.sink is not None and stream == self._stream:
                self.sink(payload)
        elif kind == HEADERS:
            if flags & END_STREAM and stream == self._stream:
                self._finish(None if _OK in payload else f"the call failed: {payload!r}")
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind in {RST_STREAM, GOAWAY}:
            self._finish(f"the server gave the call up: frame {kind}, {payload!r}")
        elif kind == SETTINGS and not flags & ACK:
            self._configure(payload)
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))

    def _widen(self, stream: int, increment: int) -> None:
        if stream == 0:
            self._connection_window += increment
        elif stream == self._stream:
            self._stream_window += increment
        if self._unsent:
            self._send(b"")

    def _configure(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == MAX_FRAME_SIZE:
                self._max_frame = value
            elif name == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
        self._write(frame(SETTINGS, ACK, 0))
        if self._unsent:
            self._send(b"")

    def _consume(self, size: int) -> None:
        self._consumed += size
        if self._consumed > _REFRESH:
            self._write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._consumed)))
            self._consumed = 0

    def _send(self, head: bytes) -> None:
        """Send ``head`` and as much of the body as the windows allow."""
        pieces: list[bytes | memoryview] = [head] if head else []
        while self._unsent:
            size = min(len(self._unsent), self._max_frame, self._connection_window, self._stream_window)
            if size <= 0:
                break
            last = END_STREAM if size == len(self._unsent) else 0
            pieces += (frame_head(size, DATA, last, self._stream), self._unsent[:size])
            self._unsent = self._unsent[size:]
            self._connection_window -= size
            self._stream_window -= size
        if self._transport is not None and pieces:
            self._transport.writelines(pieces)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _finish(self, problem: str | None) -> None:
        answer, self._answer = self._answer, None
        self._unsent = memoryview(b"")
        if answer is None or answer.done():
            return
        if problem is None:
            answer.set_result(None)
        else:
            answer.set_exception(AnswerError(problem))


@asynccontextmanager
async def callers(job: Job) -> AsyncIterator[list[Ask]]:
    """Open one connection a client."""
    host, port = job.address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    messages = {body: struct.pack(">BI", 0, len(body)) + body for body in job.bodies}
    connections: list[Connection] = []
    try:
        for _ in range(job.clients):
            _, connection = await loop.create_connection(lambda: Connection(job, messages), host, int(port))
            connections.append(connection)
        yield [connection.ask for connection in connections]
    finally:
        for connection in connections:
            connection.close()
