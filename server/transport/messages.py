"""gRPC's messages in the bytes of a stream: a flag, a length of four bytes, the message."""

from __future__ import annotations

import zlib
from types import MappingProxyType
from typing import Final

PREFIX: Final = 5
"""Bytes before each message."""
_INFLATED: Final = 128 << 20
"""Bytes that a compressed message may become: a thousandth of them is enough to make so many."""
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


class Messages:
    """Joins the messages of one stream from pieces."""

    __slots__ = ("_body", "_encoding", "_flag", "_prefix", "_size")

    def __init__(self, encoding: str) -> None:
        """Begin; ``encoding`` is one of :data:`ENCODINGS`, that of the messages whose flag is set."""
        self._encoding = encoding
        self._prefix = b""
        self._flag = 0
        self._size = 0
        self._body: bytearray | None = None  # grows with what comes: sizes are only claims

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._prefix) or self._body is not None

    def take(self, data: memoryview) -> list[bytes | bytearray]:
        """Take a piece; return the messages that it completes. ``data`` is copied.

        Raises:
            BadMessageError: a message cannot be decompressed, or its flag is none.
        """
        complete: list[bytes | bytearray] = []
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
            piece = data[position : position + self._size - len(self._body)]
            self._body += piece
            position += len(piece)
            if len(self._body) == self._size:
                body, self._body = self._body, None
                complete.append(self._plain(body))
        return complete

    def _plain(self, message: bytes | bytearray) -> bytes | bytearray:
        if self._flag == 0:
            return message
        wbits = _WBITS.get(self._encoding)
        if self._flag != 1 or wbits is None:
            raise BadMessageError("a message's flag is set, but its encoding is not named in grpc-encoding")
        inflate = zlib.decompressobj(wbits)
        try:
            plain = inflate.decompress(message, _INFLATED)
        except zlib.error as error:
            raise BadMessageError(f"a message is not {self._encoding}: {error}") from None
        if not inflate.eof:
            if inflate.unconsumed_tail:
                raise BadMessageError(f"a message is larger than {_INFLATED} bytes", large=True)
            raise BadMessageError(f"a message is not {self._encoding}: it is cut off")
        return plain
