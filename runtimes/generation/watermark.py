"""Watermark of Kirchenbauer et al., "A Watermark for Large Language Models" (2023), left-hash scheme.

The previous token decides which half of the vocabulary is green; green logits are raised. A text with more
green tokens than chance allows was generated with the watermark. Share and bias are TGI's defaults. The
lists come from this file's own hash, so only :func:`detect` recognises them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

GAMMA: Final = 0.5
"""Share of the vocabulary that is green after each token."""

DELTA: Final = 2.0
"""What is added to the logit of a green token."""

_KEY: Final = 0x9E3779B1
_THRESHOLD: Final = int(GAMMA * 2**32)


def green(previous: int, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Say which of ``ids`` are green after the token ``previous``."""
    seed = np.uint32((previous * _KEY + 0x7F4A7C15) & 0xFFFFFFFF)
    # a 32-bit finaliser with full avalanche: every bit of token and previous token decides
    mixed = ids * np.uint32(_KEY) ^ seed
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed < np.uint32(_THRESHOLD)


def detect(token_ids: Sequence[int]) -> float:
    """Return the z-score of the number of green tokens; above 4 chance is out of the question.

    Each pair of neighbours counts once, so that repeated text proves nothing. 0 without pairs.
    """
    pairs = set(pairwise(token_ids))
    if not pairs:
        return 0.0
    hits = sum(bool(green(previous, np.array([token], np.uint32))[0]) for previous, token in pairs)
    return (hits - GAMMA * len(pairs)) / math.sqrt(len(pairs) * GAMMA * (1 - GAMMA))
