"""Number formats in which clients can take vectors: what vLLM calls ``embed_dtype`` and ``endianness``."""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InvalidArgumentError

FORMATS: Final = ("float", "base64", "bytes", "bytes_only")
DTYPES: Final = ("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
ENDIANNESS: Final = ("native", "little", "big")


class VectorFormat(NamedTuple):
    """How an answer carries its vectors.

    Attributes:
        encoding: ``float`` (JSON numbers), ``base64`` (JSON strings), ``bytes`` (the body is the vectors one
            after another, a header says what is where) or ``bytes_only`` (without that header).
        dtype: one of ``DTYPES``; does not matter for ``float``.
        endianness: one of ``ENDIANNESS``; ``native`` is that of this machine.
    """

    encoding: str = "float"
    dtype: str = "float32"
    endianness: str = "native"

    @property
    def binary(self) -> bool:
        """Whether the body of an answer is the vectors themselves."""
        return self.encoding in ("bytes", "bytes_only")

    def pack(self, values: NDArray[np.float32]) -> bytes:
        """Return the values in row-major order as ``dtype``.

        Rounding goes to the nearest value, of two equally near ones to the even one. What is too large for
        an 8-bit format becomes its largest finite value, for ``float16`` and ``bfloat16`` infinity.
        """
        order = sys.byteorder if self.endianness == "native" else self.endianness
        packed = _CONVERTERS[self.dtype](np.ascontiguousarray(values, dtype=np.float32))
        wanted = packed.dtype.newbyteorder("<" if order == "little" else ">")
        return packed.astype(wanted, copy=False).tobytes()


def vector_format(encoding: str | None, dtype: str | None, endianness: str | None) -> VectorFormat:
    """Read the three fields; None is absent.

    Raises:
        InvalidArgumentError: an unknown word; the message has pydantic's ``literal_error``, which tests of
            vLLM's clients look for.
    """
    given = tuple(
        default if word is None else word
        for word, default in zip((encoding, dtype, endianness), VectorFormat(), strict=True)
    )
    names = ("encoding_format", "embed_dtype", "endianness")
    for name, word, known in zip(names, given, (FORMATS, DTYPES, ENDIANNESS), strict=True):
        if word not in known:
            *most, last = (f"'{choice}'" for choice in known)
            raise InvalidArgumentError(
                f"`{name}` is '{word}' (literal_error): Input should be {', '.join(most)} or {last}",
                field=name,
                value=word,
            )
    return VectorFormat(*given)


def _float32(values: NDArray[np.float32]) -> NDArray[Any]:
    return values


def _float16(values: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[Any]:
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _fp8_e4m3(values: NDArray[np.float32]) -> NDArray[Any]:
    return _float8(values, mantissa_bits=3, bias=7, finite=127)


def _fp8_e5m2(values: NDArray[np.float32]) -> NDArray[Any]:
    return _float8(values, mantissa_bits=2, bias=15, finite=124)


def _float8(values: NDArray[np.float32], *, mantissa_bits: int, bias: int, finite: int) -> NDArray[Any]:
    """Round to the codes 0 to ``finite`` - 1 and their negatives (bit 7); 0x7F is not a number."""
    codes = np.arange(finite)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    scale = np.ldexp(1.0, np.maximum(exponent, 1) - bias - mantissa_bits)
    known = (mantissa + np.where(exponent > 0, 1 << mantissa_bits, 0)) * scale
    halfway = (known[:-1] + known[1:]) / 2  # exact: halves of such numbers are float32
    sizes = np.abs(values)
    below = np.searchsorted(halfway, sizes, side="left")
    nearest = np.where(below % 2, np.searchsorted(halfway, sizes, side="right"), below)
    signed = nearest.astype(np.uint8) | np.where(np.signbit(values), np.uint8(0x80), np.uint8(0))
    return np.where(np.isnan(values), np.uint8(0x7F), signed)


_CONVERTERS: Final = MappingProxyType(
    {
        "float32": _float32,
        "float16": _float16,
        "bfloat16": _bfloat16,
        "fp8_e4m3": _fp8_e4m3,
        "fp8_e5m2": _fp8_e5m2,
    }
)
