"""Bodies in gzip and zlib (``deflate``) form."""

from __future__ import annotations

import gzip
import zlib
from types import MappingProxyType
from typing import Final

from headrace.server.errors import InvalidArgumentError, PayloadTooLargeError, UnsupportedError

ENCODINGS: Final = ("gzip", "deflate")
"""What is understood, in the order that answers prefer it in."""

_WINDOW_BITS: Final = MappingProxyType({"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS})
# Tensors and short JSON hardly get smaller at higher levels, which take several times as long.
_LEVEL: Final = 1


def check_encoding(encoding: str) -> str:
    """Return a request's content coding in lower case, "" for none.

    Raises:
        UnsupportedError: not one of ``ENCODINGS``.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in ENCODINGS:
        raise UnsupportedError("Unsupported compression type", encoding=encoding)
    return coding


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Inflate ``body``.

    Args:
        body: one compressed stream (one gzip member) and nothing after it.
        encoding: one of ``ENCODINGS``.
        limit: greatest size of the result in bytes.

    Raises:
        InvalidArgumentError: the body is damaged, cut short, or something else than it says.
        PayloadTooLargeError: the result is larger than ``limit``; no more than that is ever inflated.
    """
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        result = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise _damaged(encoding, str(error)) from None
    if len(result) > limit:
        msg = (
            f"decompressed request body exceeds the maximum allowed input size of {limit} bytes; raise "
            "max_body_bytes to allow more"
        )
        raise PayloadTooLargeError(msg, max_bytes=str(limit))
    if not inflater.eof:
        raise _damaged(encoding, "it ends too early")
    if inflater.unused_data:
        raise _damaged(encoding, f"{len(inflater.unused_data)} bytes follow its end")
    return result


def _damaged(encoding: str, reason: str) -> InvalidArgumentError:
    msg = f"the request body is not valid {encoding} data: {reason}"
    return InvalidArgumentError(msg, field="content-encoding", value=encoding)


def compress(body: bytes, encoding: str) -> bytes:
    """Deflate ``body`` into one of ``ENCODINGS``; equal bodies give equal results."""
    return gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)


def choose_encoding(accept: str) -> str:
    """Return the content coding for an answer to a request with this ``Accept-Encoding``, "" for none.

    The coding with the highest weight wins, of equal ones the earlier in ``ENCODINGS``. ``*`` and what cannot
    be read ask for none.
    """
    best, best_weight = "", 0.0
    for entry in accept.lower().split(","):
        name, _, options = entry.partition(";")
        coding = name.strip()
        weight = _weight(options)
        if coding == "identity" and weight > best_weight:
            best, best_weight = "", weight
        elif weight and coding in ENCODINGS and (weight, -_rank(coding)) > (best_weight, -_rank(best)):
            best, best_weight = coding, weight
    return best


def _rank(coding: str) -> int:
    return ENCODINGS.index(coding) if coding else len(ENCODINGS)


def _weight(options: str) -> float:
    """Return the q-value among an entry's options: 1 when there is none, 0 for one that is not a weight."""
    for option in options.split(";"):
        key, _, value = option.partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0 < weight <= 1 else 0.0
    return 1.0
