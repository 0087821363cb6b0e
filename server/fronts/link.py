"""One end of the socket between the core and a front: whole messages out, whole messages in."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

import msgspec

from headrace.runtimes.wire import HEADER_SIZE, frame_size

ReceivedT = TypeVar("ReceivedT")

BUFFER_BYTES: Final = 1 << 20
"""Of the sockets, each way."""

_CHUNK_BYTES: Final = 1 << 18
_LENGTH: Final = struct.Struct("<I")
_ENCODER: Final = msgspec.msgpack.Encoder()


class Link(asyncio.BufferedProtocol, Generic[ReceivedT]):
    """Sends and receives messages.

    What is written and not yet taken by the peer is bounded by what is in flight: requests on the one side,
    their answers on the other. The core (``patient``) reads nothing of a front that does not take its
    answers; a front always reads, so that the two never wait for each other.

    Args:
        decoder: of the peer's messages; views in them are of the frame and stay valid.
        on_message: called with each message.
        on_end: called once, when the connection is gone.
        patient: stop reading while the peer does not read.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[ReceivedT],
        on_message: Callable[[ReceivedT], None],
        on_end: Callable[[], None],
        *,
        patient: bool = False,
    ) -> None:
        self._decoder = decoder
        self._on_message = on_message
        self._on_end = on_end
        self._patient = patient
        self._transport: asyncio.Transport | None = None
        self._chunk = bytearray(
            _CHUNK_BYTES
        )  # small frames; the first ``_filled`` bytes are an unfinished one
        self._filled = 0
        self._body: bytearray | None = None  # a frame that is larger than what came with its header
        self._got = 0

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[ReceivedT],
        on_message: Callable[[ReceivedT], None],
        on_end: Callable[[], None],
        *,
        patient: bool = False,
    ) -> Link[ReceivedT]:
        """Return the link over a connected socket, which it closes."""
        link = cls(decoder, on_message, on_end, patient=patient)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=sock)
        return link

    def send(self, message: msgspec.Struct) -> None:
        """Write one message; nothing when the connection is gone."""
        if self._transport is None:
            return
        frame = bytearray(HEADER_SIZE)
        _ENCODER.encode_into(message, frame, HEADER_SIZE)
        _LENGTH.pack_into(frame, 0, len(frame) - HEADER_SIZE)
        self._transport.write(frame)

    def close(self) -> None:
        """End the connection after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once, even if the peer does not read."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: into the large frame that has begun, or behind the small ones."""
        del sizehint
        if self._body is not None:
            return memoryview(self._body)[self._got :]
        return memoryview(self._chunk)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes in, and hand out the messages that are complete."""
        if self._body is None:
            self._filled += nbytes
            self._split()
            return
        self._got += nbytes
        if self._got == len(self._body):
            body, self._body = self._body, None
            self._deliver(body)

    def pause_writing(self) -> None:
        """Note that the peer does not read."""
        if self._patient and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Note that the peer reads again."""
        if self._patient and self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        del exc
        self._transport = None
        self._on_end()

    def _split(self) -> None:
        """Cut the chunk into frames; begin a buffer for one that is not whole."""
        chunk, start, end = self._chunk, 0, self._filled
        while end - start >= HEADER_SIZE:
            size = frame_size(memoryview(chunk)[start : start + HEADER_SIZE])
            start += HEADER_SIZE
            here = min(size, end - start)
            frame = bytearray(size)
            frame[:here] = memoryview(chunk)[start : start + here]
            start += here
            if here == size:
                self._deliver(frame)
            else:
                self._body, self._got = frame, here
        chunk[: end - start] = chunk[start:end]
        self._filled = end - start

    def _deliver(self, frame: bytearray) -> None:
        self._on_message(self._decoder.decode(frame))
