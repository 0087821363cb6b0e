"""Integers of JSON beyond 64 bits: the parser makes floats of them, and a float has lost its last digits."""

from __future__ import annotations

from typing import Final

INT64: Final = 1 << 63
"""One more than the greatest integer of 64 bits with a sign; its negative is the least."""


def below_int64(value: float) -> bool:
    """Whether a number is less than 64 bits hold; the float of the least integer may stand for one."""
    return value < -INT64 or (value == -INT64 and isinstance(value, float))
