"""Connections for streamed answers: HTTP/2 as the unary benchmarks speak it, and HTTP/1.1 in chunks."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final, cast

from benchmarks.estimates import Window
from benchmarks.generation.client import Stream, StreamJob
from benchmarks.http2_client import Connection
from benchmarks.http_client import AnswerError
from benchmarks.load_job import Job

_HEAD_END: Final = b"\r\n\r\n"
_END: Final = b"\r\n0\r\n\r\n"
"""The last chunk. Events cannot contain it: JSON escapes carriage returns."""


async def connect(job: StreamJob) -> Stream:
    """Open a connection."""
    host, port = job.address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    if job.protocol == "http":
        _, plain = await loop.create_connection(lambda: Http1(job), host, int(port))
        return plain
    messages = {body: struct.pack(">BI", 0, len(body)) + body for body in job.bodies}
    unary = Job("grpc", job.address, job.target, job.headers, job.bodies, (), job.callers, Window(0.0, 0.0))
    _, connection = await loop.create_connection(lambda: Connection(unary, messages), host, int(port))
    return Grpc(connection)


class Grpc:
    """A connection of the unary client whose data frames are handed on."""

    def __init__(self, connection: Connection) -> None:
        """Use ``connection``."""
        self._connection = connection

    async def ask(self, body: bytes, sink: Callable[[bytes], None]) -> None:
        """Call; ``sink`` gets the payload of every DATA frame."""
        self._connection.sink = sink
        await self._connection.ask(body)

    def close(self) -> None:
        """Break off."""
        self._connection.close()


class Http1(asyncio.Protocol):
    """POST with an answer in chunks; ``sink`` gets whatever arrives, head and chunk sizes included."""

    def __init__(self, job: StreamJob) -> None:
        """Ask ``job.target``."""
        lines = [f"POST {job.target} HTTP/1.1", f"host: {job.address}"]
        lines += [f"{name}: {value}" for name, value in job.headers]
        self._head = ("\r\n".join(lines) + "\r\ncontent-length: ").encode("latin-1")
        self._transport: asyncio.Transport | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._begun = b""
        self._good = False
        self._tail = b""
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, body: bytes, sink: Callable[[bytes], None]) -> None:
        """Send a request and wait for the last chunk.

        Raises:
            AnswerError: the status is not 200, the answer is not in chunks, or the connection broke.
        """
        if self._transport is None or self._transport.is_closing():
            raise AnswerError("the connection is closed")
        self._sink, self._tail, self._begun, self._good = sink, b"", b"", False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines((self._head, b"%d\r\n\r\n" % len(body), body))
        await self._answer

    def data_received(self, data: bytes) -> None:
        """Hand data on; look for the head's status and for the last chunk."""
        if self._sink is None or self._answer is None or self._answer.done():
            return
        self._sink(data)
        if not self._good and not self._check_head(data, self._answer):
            return
        self._tail = (self._tail + data)[-len(_END) :]
        if self._tail == _END:
            self._answer.set_result(None)

    def _check_head(self, data: bytes, answer: asyncio.Future[None]) -> bool:
        """Return whether the head is there and good; fail ``answer`` when it is bad."""
        self._begun += data
        head, found, _ = self._begun.partition(_HEAD_END)
        if found:
            self._good = head.startswith(b"HTTP/1.1 200 ") and b"chunked" in head.lower()
            if not self._good:
                answer.set_exception(AnswerError(repr(self._begun[:500])))
        return self._good

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AnswerError(f"connection lost: {exc}"))

    def close(self) -> None:
        """Break off."""
        if self._transport is not None:
            self._transport.abort()
