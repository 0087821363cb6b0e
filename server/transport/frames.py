"""HTTP/2 frames (RFC 9113, section 4 and 6): numbers, and how they are written."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

Piece = bytes | bytearray | memoryview
"""Of frames that are written."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
DEFAULT_FRAME: Final = 16_384
"""Bytes of payload that a peer takes in one frame unless it says otherwise."""
LARGEST_FRAME: Final = (1 << 24) - 1
DEFAULT_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = (1 << 31) - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

HEADER_TABLE: Final = 4096
"""Bytes of a header table unless a peer says otherwise."""

HEAD: Final = struct.Struct(">HBBBI")
"""Length (the first two numbers), kind, flags, stream."""
SETTING: Final = struct.Struct(">HI")
NUMBER: Final = struct.Struct(">I")
PAIR: Final = struct.Struct(">II")


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class BrokenProtocolError(Exception):
    """The peer broke the protocol: the connection ends with a GOAWAY of this code and text."""

    def __init__(self, text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write one frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """Write the nine bytes before a payload of ``size`` bytes."""
    return HEAD.pack(size >> 8, size & 255, kind, flags, stream)


def unpadded(payload: memoryview, flags: int) -> memoryview:
    """Return what is in a payload beside its padding."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise BrokenProtocolError("a padded frame of no bytes", ErrorCode.FRAME_SIZE_ERROR)
    if payload[0] >= len(payload):
        raise BrokenProtocolError("more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def expect(payload: memoryview, size: int, number: int, *, on_stream: bool | None) -> None:
    """Check a frame's size, and whether it is on a stream; None for either."""
    if on_stream is not None and bool(number) is not on_stream:
        raise BrokenProtocolError(f"a frame on stream {number}")
    if len(payload) != size:
        raise BrokenProtocolError(
            f"a frame of {len(payload)} bytes, expected {size}", ErrorCode.FRAME_SIZE_ERROR
        )


def settings(values: dict[int, int]) -> bytes:
    """Write a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in values.items()))
