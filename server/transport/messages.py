"""gRPC's messages in the bytes of a stream: a flag, a length of four bytes, the message."""

from __future__ import annotations

import zlib
from types import MappingProxyType
from typing import Final

PREFIX: Final = 5
"""Bytes before each message."""
_INFLATED: Final = 128 << 20
"""Bytes that a compressed message may become: a thousandth of them is enough to make so many."""
_AHEAD: Final = 4
"""A message has memory for so many times the bytes that have come, if it claims to be that long."""
_AT_ONCE: Final = 64 << 10
"""Bytes, compressed and not, up to which a message is decompressed where it is received."""
_WBITS: Final = MappingProxyType({"gzip": 31, "deflate": 15})
ENCODINGS: Final = frozenset({"identity", *_WBITS})


class BadMessageError(Exception):
    """The bytes are no message that is taken; the text says why.

    Attributes:
        large: whether it is too large, and else might be one.
    """

    def __init__(self, text: str, *, large: bool = False) -> None:
        super().__init__(text)
        self.large = large


class Compressed:
    """A message that is still to be decompressed, which takes too long for the event loop."""

    __slots__ = ("_data", "_encoding")

    def __init__(self, data: bytes | bytearray, encoding: str) -> None:
        """Keep ``data``, which is compressed as ``encoding`` says; it may be larger once it is not."""
        self._data = data
        self._encoding = encoding

    def inflate(self, most: int = 0) -> bytes:
        """Return the message.

        Args:
            most: bytes that it may have; 0 for as many as are ever taken.

        Raises:
            BadMessageError: it has more, or is not compressed so.
        """
        inflate = zlib.decompressobj(_WBITS[self._encoding])
        most = most or _INFLATED
        try:
            plain = inflate.decompress(self._data, most)
        except zlib.error as error:
            raise BadMessageError(f"a message is not {self._encoding}: {error}") from None
        if not inflate.eof:
            if inflate.unconsumed_tail:
                raise BadMessageError(f"a message is larger than {most} bytes", large=True)
            raise BadMessageError(f"a message is not {self._encoding}: it is cut off")
        return plain


Message = bytes | bytearray | Compressed


class Messages:
    """Joins the messages of one stream from pieces."""

    __slots__ = ("_body", "_encoding", "_filled", "_flag", "_prefix", "_size")

    def __init__(self, encoding: str) -> None:
        """Begin; ``encoding`` is one of :data:`ENCODINGS`, that of the messages whose flag is set."""
        self._encoding = encoding
        self._prefix = b""
        self._flag = 0
        self._size = 0
        self._body: bytearray | None = None  # grows with what comes: sizes are only claims
        self._filled = 0  # bytes of it

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._prefix) or self._body is not None

    def take(self, data: memoryview) -> list[Message]:
        """Take a piece; return the messages that it completes. ``data`` is copied.

        Raises:
            BadMessageError: a small message cannot be decompressed, or a message's flag is none.
        """
        complete: list[Message] = []
        position, end = 0, len(data)
        while position < end:
            if self._body is None:
                prefix = self._prefix + bytes(data[position : position + PREFIX - len(self._prefix)])
                position += len(prefix) - len(self._prefix)
                self._prefix = prefix
                if len(prefix) < PREFIX:
                    break
                self._prefix = b""
                self._flag, self._size = prefix[0], int.from_bytes(prefix[1:], "big")
                if position + self._size <= end:
                    message = bytes(data[position : position + self._size])
                    position += self._size
                    complete.append(self._plain(message))
                    continue
                self._body = bytearray()
                self._filled = 0
            piece = data[position : position + self._size - self._filled]
            self._fill(self._body, piece)
            position += len(piece)
            if self._filled == self._size:
                body, self._body = self._body, None
                complete.append(self._plain(body))
        return complete

    def _fill(self, body: bytearray, piece: memoryview) -> None:
        filled = self._filled + len(piece)
        if filled > len(body):
            # at one go, mostly, for what has come would be copied each time
            body.extend(bytes(min(self._size, _AHEAD * filled) - len(body)))
        with memoryview(body) as view:
            view[self._filled : filled] = piece
        self._filled = filled

    def _plain(self, message: bytes | bytearray) -> Message:
        if self._flag == 0:
            return message
        if self._flag != 1 or self._encoding not in _WBITS:
            raise BadMessageError("a message's flag is set, but its encoding is not named in grpc-encoding")
        compressed = Compressed(message, self._encoding)
        if len(message) > _AT_ONCE:
            return compressed
        try:
            return compressed.inflate(_AT_ONCE)
        except BadMessageError as error:
            if error.large:
                return compressed
            raise
