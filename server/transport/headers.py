"""Headers of RPCs: HPACK blocks of requests, and those of answers (RFC 7541; gRPC over HTTP/2)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote_from_bytes

import hpack
import hpack.exceptions

from headrace.server.transport.frames import BrokenProtocolError, ErrorCode

if TYPE_CHECKING:
    from hpack.table import HeaderTable

Metadata = tuple[tuple[str, str | bytes], ...]

MOST_HEADERS: Final = 128 * 1024
"""Bytes of one request's headers, as HPACK counts them; Envoy admits 60 KiB."""
_KEPT_BLOCKS: Final = 64
_KEPT_BLOCK_BYTES: Final = 2048
_KEPT_FIELDS: Final = 64
_KEPT_FIELD_BYTES: Final = 4096

_UNITS: Final = MappingProxyType({"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9})
_TIMEOUT_DIGITS: Final = 8
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_REQUIRED: Final = frozenset({b":method", b":scheme", b":path"})
_FORBIDDEN: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_UNSENDABLE: Final = re.compile(rb"[\x00\r\n]")
_BAD_NAME: Final = re.compile(rb"[^a-z0-9_.:-]")
_NO_NAME: Final = re.compile(rb"[\x00-\x20A-Z\x7f-\xff]|.:|^$")  # RFC 9113, section 8.2.1
_GRPC: Final = re.compile(rb"application/grpc([+; ]|$)")
_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_OWN: Final = frozenset(
    {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"content-length"}
)
"""Fields of the protocol, which handlers do not see."""


class Head(NamedTuple):
    """What the headers of a request say.

    Attributes:
        path: ``/package.Service/Method``.
        metadata: the caller's, in their order; ``-bin`` values as bytes.
        timeout: seconds the caller waits; None for no limit.
        encoding: how its messages are compressed.
        refusal: HTTP status with which it is refused as no gRPC request; 0 for none.
        malformed: what makes it no HTTP/2 request, which resets the stream; "" for nothing.
    """

    path: str
    metadata: Metadata
    timeout: float | None
    encoding: str
    refusal: int
    malformed: str


class HeaderReader:
    """Reads the header blocks of one connection.

    Callers repeat themselves: a block that changes nothing in the table of the connection means the same
    until something does, so such blocks are read once.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MOST_HEADERS)
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Read a block.

        Raises:
            BrokenProtocolError: it cannot be decoded, so none after it could.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        size, count, newest = table.maxsize, len(table.dynamic_entries), _newest(table)
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except hpack.exceptions.OversizedHeaderListError:
            raise BrokenProtocolError(
                f"headers of more than {MOST_HEADERS} bytes", ErrorCode.ENHANCE_YOUR_CALM
            ) from None
        except hpack.exceptions.HPACKError as error:
            text = f"a header block cannot be read: {type(error).__name__}"
            raise BrokenProtocolError(text, ErrorCode.COMPRESSION_ERROR) from None
        head = _head(fields)
        # Entries come in at the table's front, and leave it when it is full: this tells whether any did.
        if table.maxsize != size or len(table.dynamic_entries) != count or _newest(table) is not newest:
            self._known.clear()
        elif len(block) <= _KEPT_BLOCK_BYTES and _small(fields):
            if len(self._known) >= _KEPT_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head


def _small(fields: Collection[tuple[bytes, bytes]]) -> bool:
    """Whether fields may be kept: a byte of a block can stand for a long one."""
    size = sum(len(name) + len(value) for name, value in fields)
    return len(fields) <= _KEPT_FIELDS and size <= _KEPT_FIELD_BYTES


def _newest(table: HeaderTable) -> object:
    return table.dynamic_entries[0] if table.dynamic_entries else None


def _head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    pseudo: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    malformed = ""
    for name, value in fields:
        malformed = malformed or _fault(name, value)
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or metadata or own:
                malformed = f"pseudo-header {_text(name)} is unknown, repeated or late"
            pseudo[name] = value
        elif name in _OWN:
            own[name] = value
        else:
            metadata += _metadata(_text(name), value)
    timeout = None
    try:
        if (limit := own.get(b"grpc-timeout")) is not None:
            timeout = read_timeout(_text(limit))
    except ValueError:
        malformed = "grpc-timeout is not a number of at most 8 digits and a unit"
    if not pseudo.keys() >= _REQUIRED:
        malformed = "a pseudo-header is missing"
    path, encoding = pseudo.get(b":path", b""), own.get(b"grpc-encoding", b"identity")
    return Head(_text(path), tuple(metadata), timeout, _text(encoding), _refusal(pseudo, own), malformed)


def _fault(name: bytes, value: bytes) -> str:
    """Return what makes a field malformed; "" for nothing."""
    if name in _FORBIDDEN or _NO_NAME.search(name) or (name == b"te" and value != b"trailers"):
        return f"header {_text(name)} is not allowed in HTTP/2"
    if _UNSENDABLE.search(value):
        return f"the value of {_text(name)} has characters that headers cannot have"
    return ""


def _refusal(pseudo: Mapping[bytes, bytes], own: Mapping[bytes, bytes]) -> int:
    """Return the HTTP status for what is no gRPC request; 0 for one."""
    if pseudo.get(b":method") != b"POST":
        return 405
    return 0 if _GRPC.match(own.get(b"content-type", b"")) else 415


def read_timeout(text: str) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        ValueError: it is not one.
    """
    digits, unit = text[:-1], text[-1:]
    if not digits.isdecimal() or not digits.isascii() or len(digits) > _TIMEOUT_DIGITS or unit not in _UNITS:
        raise ValueError(text)
    return int(digits) * _UNITS[unit]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _metadata(key: str, value: bytes) -> Metadata:
    """Return the values of a field: base64 has padding or not, and peers may join several with commas."""
    if not key.endswith("-bin"):
        return ((key, _text(value)),)
    parts = value.split(b",")
    try:
        return tuple((key, binascii.a2b_base64(part + b"=" * (-len(part) % 4))) for part in parts)
    except binascii.Error:
        return ((key, value),)


def literal(name: str, value: str | bytes) -> bytes:
    """Write a field that is not put into the peer's table.

    Raises:
        ValueError: the name or the value cannot be sent.
    """
    key = name.encode("ascii")
    if key.endswith(b"-bin"):
        data = base64.b64encode(value if isinstance(value, bytes) else value.encode()).rstrip(b"=")
    else:
        data = value if isinstance(value, bytes) else value.encode()
        if _UNSENDABLE.search(data):
            raise ValueError(f"the value of {name} has characters that headers cannot have")
    if _BAD_NAME.search(key) or not key:
        raise ValueError(f"{name!r} is not the name of a header")
    return b"\x00" + _string(key) + _string(data)


def _string(data: bytes) -> bytes:
    return (
        bytes(hpack.hpack.encode_integer(len(data), 7)) + data
        if len(data) > 126
        else bytes((len(data),)) + data
    )


def block(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Write fields one after the other."""
    return b"".join(literal(name, value) for name, value in fields)


ANSWER: Final = b"\x88" + block(
    (("content-type", "application/grpc"), ("grpc-accept-encoding", "identity,deflate,gzip"))
)
"""What begins every answer; 0x88 is ``:status: 200``."""

_OK: Final = literal("grpc-status", "0")


def status(code: int, message: str) -> bytes:
    """Write how an RPC ended."""
    if not code and not message:
        return _OK
    written = literal("grpc-status", str(code))
    if not message:
        return written
    # All but the printable characters of ASCII, and the percent sign, is percent-encoded.
    return written + literal("grpc-message", quote_from_bytes(message.encode(errors="replace"), _PLAIN))


def refusal(code: int) -> bytes:
    """Write the whole answer to what is no gRPC request."""
    return block(((":status", str(code)),))
