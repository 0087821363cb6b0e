"""What is sent on a connection: whole frames, within the peer's windows (RFC 9113, section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.server.transport import frames
from headrace.server.transport.frames import BrokenProtocolError, ErrorCode, Piece, frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from headrace.server.transport.stream import Stream

_UNREAD: Final = 16 << 20
"""Bytes outside the windows that wait for a caller who goes on asking for them and reads too little."""


_NO_TABLE: Final = b"\x20"
"""Begins the next header block of one whose peer wants a smaller table: we use none (RFC 7541, 4.2)."""


class Sending:
    """The sending side of a connection.

    Attributes:
        transport: where to write; None once the connection is lost.
        window: bytes that the peer takes on all streams.
        initial_window: bytes that it takes on a new stream; what streams have differs from that.
        max_frame: bytes of payload that it takes in a frame.
        paused: whether the transport has more to write than it should.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME
        self.paused = False
        self._unread = 0  # bytes outside the windows since the transport took all
        self._table_update = b""  # what the next header block begins with
        self._blocked: dict[int, Stream] = {}  # in turn; those whose own window may have room
        self._stalled: dict[int, Stream] = {}  # those whose own window has none

    def write(self, data: bytes) -> None:
        """Write whole frames."""
        if self.transport is not None:
            self.transport.write(data)

    def write_all(self, pieces: Iterable[Piece]) -> None:
        """Write whole frames that lie in pieces."""
        if self.transport is not None:
            self.transport.writelines(pieces)

    def acknowledge(self, answer: bytes) -> None:
        """Write what the peer has asked for."""
        self._count(len(answer))
        self.write(answer)

    def _count(self, size: int) -> None:
        """Count what no window holds back; end the connection of a peer who causes it and does not read."""
        transport = self.transport
        if not self.paused or transport is None:
            self._unread = 0
            return
        self._unread = min(self._unread, transport.get_write_buffer_size()) + size
        if self._unread > _UNREAD:
            transport.abort()

    def widen(self, number: int, size: int) -> None:
        """Let the peer send ``size`` bytes more, on a stream or, for 0, on all."""
        self.write(frame(frames.WINDOW_UPDATE, 0, number, frames.NUMBER.pack(size)))

    def reset(self, number: int, code: ErrorCode) -> None:
        """Tell the peer that a stream is broken off."""
        self.acknowledge(frame(frames.RST_STREAM, 0, number, frames.NUMBER.pack(code)))

    def header_frames(self, number: int, flags: int, block: bytes) -> list[Piece]:
        """Return a header block as the frames that it needs."""
        block, self._table_update = self._table_update + block, b""
        self._count(len(block))
        size = self.max_frame
        if len(block) <= size:
            return [frame(frames.HEADERS, flags, number, block)]
        first, *rest = (block[start : start + size] for start in range(0, len(block), size))
        return [
            frame(frames.HEADERS, flags & ~frames.END_HEADERS, number, first),
            *(frame(frames.CONTINUATION, 0, number, part) for part in rest[:-1]),
            frame(frames.CONTINUATION, frames.END_HEADERS, number, rest[-1]),
        ]

    def room(self, stream: Stream) -> int:
        """Return how many bytes of ``stream`` a frame may have now; none if not positive."""
        return min(self.max_frame, self.window, self.initial_window + stream.window)

    def spend(self, stream: Stream, size: int) -> None:
        """Count ``size`` bytes of ``stream`` as sent."""
        self.window -= size
        stream.window -= size

    def wait_for_room(self, stream: Stream) -> None:
        """Have ``stream`` go on when there is room."""
        self._stalled.pop(stream.number, None)
        self._blocked[stream.number] = stream

    def forget(self, number: int) -> None:
        """Wait no longer for a stream's room."""
        self._blocked.pop(number, None)
        self._stalled.pop(number, None)

    def widened(self, increment: int) -> None:
        """Take the peer's wider window for all streams.

        Raises:
            BrokenProtocolError: it is too wide, or not wider.
        """
        self.window += increment
        if not increment:
            raise BrokenProtocolError("a window that is not widened")
        if self.window > frames.LARGEST_WINDOW:
            raise BrokenProtocolError("a window that is too wide", ErrorCode.FLOW_CONTROL_ERROR)
        self.send_on()

    def send_on(self) -> None:
        """Send what waited for room: a frame of each stream in turn."""
        blocked = self._blocked
        while blocked and self.window > 0:
            number = next(iter(blocked))
            stream = blocked.pop(number)
            if self.room(stream) > 0:
                stream.send_on()
                if stream.blocked:
                    blocked[number] = stream
            else:
                self._stalled[number] = stream

    def configure(self, payload: memoryview) -> None:
        """Take the peer's settings; of several values the last counts.

        Raises:
            BrokenProtocolError: one of them is out of its range.
        """
        values = dict(frames.SETTING.iter_unpack(payload))
        self.max_frame = values.get(frames.MAX_FRAME_SIZE, self.max_frame)
        if not frames.DEFAULT_FRAME <= self.max_frame <= frames.LARGEST_FRAME:
            raise BrokenProtocolError(f"a largest frame of {self.max_frame} bytes")
        if values.get(frames.ENABLE_PUSH, 0) > 1:
            raise BrokenProtocolError(f"ENABLE_PUSH is {values[frames.ENABLE_PUSH]}")
        if values.get(frames.HEADER_TABLE_SIZE, frames.HEADER_TABLE) < frames.HEADER_TABLE:
            self._table_update = _NO_TABLE
        self._resize(values.get(frames.INITIAL_WINDOW_SIZE, self.initial_window))
        self.acknowledge(frame(frames.SETTINGS, frames.ACK, 0))
        self.send_on()

    def _resize(self, value: int) -> None:
        if value > frames.LARGEST_WINDOW:
            raise BrokenProtocolError(f"an initial window of {value} bytes", ErrorCode.FLOW_CONTROL_ERROR)
        wider, self.initial_window = value > self.initial_window, value
        if wider:
            self._blocked |= self._stalled
            self._stalled.clear()
