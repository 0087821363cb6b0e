"""What is received on a connection, cut into frames (RFC 9113, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.server.transport import frames
from headrace.server.transport.frames import BrokenProtocolError, ErrorCode

if TYPE_CHECKING:
    from headrace.server.transport.base import FrameTaker

BUFFER: Final = 1024 * 1024
"""Bytes that are received at once: an image of 224 by 224 values of 4 bytes is one piece."""
LARGEST_FRAME: Final = 1024 * 1024
"""Bytes of payload that we take in one frame: a message that comes in one piece is copied once."""
_PREFACE_BYTES: Final = len(frames.PREFACE)


class FrameReader:
    """Cuts what one connection receives.

    DATA frames are passed on as they come; others once they are complete.
    """

    def __init__(self, taker: FrameTaker) -> None:
        self._taker = taker
        self._greeted = False
        self._held = bytearray()  # the beginning of a frame
        self._left = 0  # bytes of a DATA frame that are still to come

    def take(self, data: memoryview) -> None:
        """Take what was received.

        Raises:
            BrokenProtocolError: it is not HTTP/2.
        """
        held = self._held
        if held:
            held += data
            if len(held) < self._needed(held):
                return
            self._held = bytearray()
            data = memoryview(held)
        position = 0 if self._greeted else self._greet(data)
        end = len(data)
        while position < end:
            if self._left:
                piece = data[position : position + self._left]
                position += len(piece)
                self._left -= len(piece)
                self._taker.take_data(piece, last=not self._left)
            elif (after := self._take_next(data, position)) is None:
                self._held += data[position:]
                return
            else:
                position = after

    def _take_next(self, data: memoryview, position: int) -> int | None:
        """Take the frame that begins at ``position``, or its head; return where to go on, None for later."""
        start = position + frames.HEADER_BYTES
        if start > len(data):
            return None
        high, low, kind, flags, number = frames.HEAD.unpack_from(data, position)
        size: int = high << 8 | low
        number &= frames.LARGEST_WINDOW
        if size > LARGEST_FRAME:
            raise BrokenProtocolError(
                f"a frame of {size} bytes, at most {LARGEST_FRAME} are taken", ErrorCode.FRAME_SIZE_ERROR
            )
        if kind == frames.DATA and not flags & frames.PADDED:
            self._taker.begin_data(number, size, flags)
            self._left = size
            if not size:
                self._taker.take_data(data[start:start], last=True)
            return start
        if start + size > len(data):
            return None
        self._taker.take_frame(kind, flags, number, data[start : start + size])
        return start + size

    def _greet(self, data: memoryview) -> int:
        """Look for the caller's preface; return where frames begin."""
        start = bytes(data[:_PREFACE_BYTES])
        if not frames.PREFACE.startswith(start):
            raise BrokenProtocolError("this port speaks gRPC, which is HTTP/2")
        if len(start) < _PREFACE_BYTES:
            self._held += start
            return len(data)
        self._greeted = True
        self._taker.greeted()
        return _PREFACE_BYTES

    def _needed(self, held: bytearray) -> int:
        """Return the bytes with which what is held can be read on."""
        if not self._greeted:
            return _PREFACE_BYTES
        if len(held) < frames.HEADER_BYTES:
            return frames.HEADER_BYTES
        if held[3] == frames.DATA and not held[4] & frames.PADDED:
            return frames.HEADER_BYTES
        size = held[0] << 16 | held[1] << 8 | held[2]
        return frames.HEADER_BYTES + (size if size <= LARGEST_FRAME else 0)
