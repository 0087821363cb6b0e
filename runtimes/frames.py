"""Reads messages of ``headrace.runtimes.wire`` from a stream socket."""

from __future__ import annotations

import socket
from typing import Final, TypeVar

import msgspec

from headrace.runtimes.wire import HEADER_SIZE, frame_size

MessageT = TypeVar("MessageT")

_FIRST_SIZE: Final = 1 << 16


class FrameReader:
    """Reads frames into one buffer that grows to the largest frame seen.

    Attributes:
        closed: whether the peer has closed the connection; nothing more comes.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Read from ``connection``, which blocks and which the caller keeps open."""
        self.closed = False
        self._connection = connection
        self._buffer = bytearray(_FIRST_SIZE)
        self._start = 0
        self._end = 0

    def read(self, decoder: msgspec.msgpack.Decoder[MessageT]) -> MessageT | None:
        """Wait for the next message and return it, or None when the peer has closed the connection."""
        return self._next(decoder, 0)

    def take(self, decoder: msgspec.msgpack.Decoder[MessageT]) -> MessageT | None:
        """Return the next message if all of it has come, else None; never waits."""
        return self._next(decoder, socket.MSG_DONTWAIT)

    def _next(self, decoder: msgspec.msgpack.Decoder[MessageT], flags: int) -> MessageT | None:
        if not self._fill(HEADER_SIZE, flags):
            return None
        size = frame_size(memoryview(self._buffer)[self._start : self._start + HEADER_SIZE])
        if not self._fill(HEADER_SIZE + size, flags):
            return None
        body = self._start + HEADER_SIZE
        message = decoder.decode(memoryview(self._buffer)[body : body + size])
        self._start = body + size
        return message

    def _fill(self, wanted: int, flags: int) -> bool:
        """Have at least ``wanted`` unread bytes in the buffer, if the flags let them come."""
        while self._end - self._start < wanted:
            if self._start:
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            if len(self._buffer) < wanted:
                self._buffer.extend(bytes(wanted - len(self._buffer)))
            try:
                received = self._connection.recv_into(memoryview(self._buffer)[self._end :], 0, flags)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                received = 0
            if not received:
                self.closed = True
                return False
            self._end += received
        return True
