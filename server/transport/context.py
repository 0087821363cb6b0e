"""What a handler sees of the RPC that it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from headrace.server.transport import headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.server.transport.stream import Stream

    Fields = Iterable[tuple[str, str | bytes]]


class AbortError(Exception):
    """Ends a handler whose RPC has ended with :meth:`Context.abort`; nobody else should catch it."""


class Context:
    """Of ``grpc.aio.ServicerContext`` what handlers use here.

    Args:
        stream: of the RPC.
        encode: serialises its answers; None where they are bytes.
    """

    __slots__ = ("_code", "_details", "_encode", "_stream", "_trailing")

    def __init__(self, stream: Stream, encode: Callable[[Any], bytes] | None) -> None:
        self._stream = stream
        self._encode = encode
        self._trailing = b""
        self._code = 0
        self._details = ""

    def invocation_metadata(self) -> headers.Metadata:
        """Return the caller's metadata."""
        return self._stream.head.metadata

    def time_remaining(self) -> float | None:
        """Return the seconds that the caller still waits, at least 0; None without a limit."""
        deadline = self._stream.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    async def send_initial_metadata(self, metadata: Fields) -> None:
        """Send the answer's headers now.

        Raises:
            RuntimeError: they are out.
            ValueError: a field cannot be sent.
        """
        if self._stream.started:
            raise RuntimeError("the headers of the answer were sent before")
        self._stream.send(headers.ANSWER + headers.block(metadata), None, None)

    def set_trailing_metadata(self, metadata: Fields) -> None:
        """Set what is sent with the status.

        Raises:
            ValueError: a field cannot be sent.
        """
        self._trailing = headers.block(metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status that the RPC ends with once its handler returns."""
        self._code = code.value[0]

    def set_details(self, details: str) -> None:
        """Set the text of that status."""
        self._details = details

    async def write(self, message: Any) -> None:
        """Send a message of a stream of answers; return when there is room for the next.

        Raises:
            AbortError: the RPC has ended.
            TypeError: what the message is serialised to is not bytes.
        """
        stream = self._stream
        stream.send(None if stream.started else headers.ANSWER, self._encoded(message), None)
        if stream.gone:
            await asyncio.sleep(0)  # where the handler is cancelled, if the caller has left
            raise AbortError
        if stream.congested:
            await stream.sent()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Fields = ()
    ) -> NoReturn:
        """End the RPC with an error.

        Raises:
            AbortError: always.
            ValueError: a field of ``trailing_metadata`` cannot be sent.
        """
        trailing = headers.block(trailing_metadata) or self._trailing
        self.end(code.value[0], details or self._details, trailing)
        raise AbortError

    def finish(self, message: Any) -> None:
        """Send the one answer, unless an error is set, and the end.

        Raises:
            TypeError: what the message is serialised to is not bytes.
        """
        if self._code:
            self.close()
            return
        stream = self._stream
        trailers = headers.status(0, self._details) + self._trailing
        stream.send(None if stream.started else headers.ANSWER, self._encoded(message), trailers)

    def close(self) -> None:
        """Send the end of a stream of answers, as :meth:`finish` does."""
        self.end(self._code, self._details, self._trailing)

    def fail(self, details: str) -> None:
        """Send the end of an RPC whose handler has raised something else."""
        self.end(self._code or grpc.StatusCode.UNKNOWN.value[0], details, self._trailing)

    def end(self, code: int, details: str, trailing: bytes = b"") -> None:
        """Send a status; without an answer before it its headers come with it."""
        begin = b"" if self._stream.started else headers.ANSWER
        self._stream.send(None, None, begin + headers.status(code, details) + trailing)

    def _encoded(self, message: Any) -> bytes | bytearray:
        encoded = message if self._encode is None else self._encode(message)
        if not isinstance(encoded, bytes | bytearray):
            raise TypeError(f"an answer is serialised to {type(encoded)}, not to bytes")
        return encoded
