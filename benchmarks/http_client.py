"""Callers over HTTP/1.1 with kept-alive connections: a bare protocol, so that the client costs little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final, cast

from benchmarks.closed_loop import Ask
from benchmarks.load_job import Job

_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"


class AnswerError(Exception):
    """The answer was not 200 with a Content-Length, or the connection broke."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, head: bytes) -> None:
        """Send ``head`` (all header lines but Content-Length) before every body."""
        self._head = head
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._wanted = 0
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, body: bytes) -> Awaitable[bytes]:
        """Send a request; the future has the body of the answer.

        Raises:
            AnswerError: the connection is gone.
        """
        if self._transport is None or self._transport.is_closing():
            raise AnswerError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines((self._head, b"%d\r\n\r\n" % len(body), body))
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Collect the answer and resolve it once it is complete."""
        self._received += data
        if not self._wanted and not self._parse_head():
            return
        if len(self._received) < self._wanted:
            return
        answer, self._answer = self._answer, None
        body = bytes(self._received[self._start : self._wanted])
        good = self._received.startswith(b"HTTP/1.1 200 ")
        del self._received[: self._wanted]
        self._wanted = 0
        if answer is None or answer.done():
            return
        if good:
            answer.set_result(body)
        else:
            answer.set_exception(AnswerError(f"{self._status}: {body[:300]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AnswerError(f"connection lost: {exc}"))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _parse_head(self) -> bool:
        end = self._received.find(_END)
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        self._status = head[: head.find(b"\r\n")].decode("latin-1")
        at = head.find(_LENGTH)
        if at < 0:
            self._fail("the answer has no Content-Length")
            return False
        line = head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]
        self._start = end + len(_END)
        self._wanted = self._start + int(line)
        return True

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AnswerError(f"{reason}: {self._status}"))
        self.close()


def head(job: Job) -> bytes:
    """Write the lines before the body of ``job``'s requests, all but the value of Content-Length."""
    lines = [f"POST {job.target} HTTP/1.1", f"host: {job.address}"]
    lines += [f"{name}: {value}" for name, value in job.headers]
    return ("\r\n".join(lines) + "\r\ncontent-length: ").encode("latin-1")


@asynccontextmanager
async def callers(job: Job) -> AsyncIterator[list[Ask]]:
    """Open one connection a client."""
    start = head(job)
    host, port = job.address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    try:
        for _ in range(job.clients):
            _, connection = await loop.create_connection(lambda: Connection(start), host, int(port))
            connections.append(connection)
        yield [connection.ask for connection in connections]
    finally:
        for connection in connections:
            connection.close()
