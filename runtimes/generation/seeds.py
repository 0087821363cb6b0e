"""Random numbers that depend on nothing but seed, sample and position: a hash of the three (BLAKE2b)."""

from __future__ import annotations

import os
from hashlib import blake2b
from struct import Struct
from typing import Final

_WORD: Final = 2**64
_KEY: Final = Struct("<QQQ")


def draw_seed() -> int:
    """Return a seed from the operating system, 0 to 2**63 - 1."""
    return int.from_bytes(os.urandom(8), "little") >> 1


def uniform(seed: int, sample: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits.

    Args:
        seed: any integer; equal modulo 2**64 is equal.
        sample: index of the sample of a request, at least 0; each has its own stream.
        position: index of the output token, at least 0.
    """
    digest = blake2b(_KEY.pack(seed % _WORD, sample, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
