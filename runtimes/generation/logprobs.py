"""Log-probabilities and top-k selection over logits rows; no full sorts.

Every function takes one row of raw logits, ``[V]`` float32, and leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation.messages import Logprob

Row = NDArray[np.float32]

_BLOCK: Final = 16
"""Elements behind each block maximum; small enough that the bound they give is tight."""


def kth_largest(row: Row, k: int) -> float:
    """Return the ``k``-th largest value of ``row``; ``k`` from 1 to its size.

    The ``k`` largest block maxima are ``k`` different elements, so the ``k``-th of them bounds the answer
    from below and only what reaches the bound has to be partitioned.
    """
    columns = row.size // _BLOCK
    candidates = row
    if 2 * k <= columns:
        maxima = row[: columns * _BLOCK].reshape(_BLOCK, columns).max(axis=0)
        bound = np.partition(maxima, columns - k)[columns - k]
        candidates = row[np.flatnonzero(row >= bound)]
        if candidates.size < k:  # NaN, which is never >= anything
            candidates = row
    return float(np.partition(candidates, candidates.size - k)[candidates.size - k])


def largest(row: Row, k: int) -> NDArray[np.intp]:
    """Return the indices of the ``k`` largest values, best first, the lower index first among equals.

    Impossible tokens (-inf) are never among them, so there may be fewer.
    """
    k = min(k, row.size)
    if k <= 0:
        return np.empty(0, np.intp)
    bound = np.float32(kth_largest(row, k))
    candidates = np.flatnonzero(row >= bound if bound > -np.inf else row > -np.inf)
    return candidates[np.argsort(-row[candidates], kind="stable")[:k]]


def log_normalizer(row: Row) -> float:
    """Return the log of the summed exponentials, which turns logits into log-probabilities."""
    return _log_sum(row, row.max())


def _log_sum(row: Row, top: np.float32) -> float:
    """Return the same where the largest value, ``top``, is known."""
    if not np.isfinite(top):
        return float(top)
    shares = row - top
    np.exp(shares, out=shares)
    return float(top) + float(np.log(shares.sum()))


def log_softmax(row: Row) -> Row:
    """Return the log-probabilities of a row, ``[V]`` float32."""
    return row - np.float32(log_normalizer(row))


def token_logprob(row: Row, token: int, top: int) -> Logprob:
    """Describe ``token`` among the row's possibilities, with the ``top`` most likely ones."""
    highest, value = row.max(), row[token]
    norm = _log_sum(row, highest)
    best = largest(row, top) if top else ()
    return Logprob(
        float(value) - norm,
        1 if value == highest else int(np.count_nonzero(row > value)) + 1,
        tuple((int(index), float(row[index]) - norm) for index in best),
    )


def prompt_logprobs(logits: NDArray[np.float32], targets: Sequence[int], top: int) -> list[Logprob]:
    """Describe ``targets[i]`` under ``logits[i]``; ``logits`` is ``[T, V]`` with ``T == len(targets)``."""
    return [token_logprob(row, target, top) for row, target in zip(logits, targets, strict=True)]
