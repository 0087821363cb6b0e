"""Hidden states of tokens to one vector a text.

The names are those of ``TextSpec.pooling``. Several, joined by ``+``, give their vectors one after another,
as the Pooling module of sentence-transformers does.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError

ORDER: Final = ("cls", "max", "mean", "mean_sqrt", "weighted_mean", "last")
"""In which order joined poolings stand, whatever order they are named in."""
SPLADE: Final = "splade"
SPLADES: Final = (SPLADE, "splade_sum", "splade_log1p", "splade_sum_log1p")
"""Weights of the vocabulary: the largest of all tokens, or the ``sum``; ``log1p``: one logarithm more."""


class Rows(NamedTuple):
    """Where the tokens of a padded batch are.

    Attributes:
        lengths: tokens of each row, at least 1 each.
        mask: bool [rows, width], True for tokens; they come first.
    """

    lengths: NDArray[Any]
    mask: NDArray[np.bool_]


def parts(pooling: str) -> tuple[str, ...]:
    """Return the single poolings of a name, in their order.

    Raises:
        ModelError: there is no such pooling, or it cannot be joined.
    """
    if pooling in SPLADES:
        return (pooling,)
    names = pooling.split("+")
    if len(set(names)) < len(names) or not set(names) <= set(ORDER):
        known = f"expected {', '.join(SPLADES)}, or of {', '.join(ORDER)} one or several, joined by +"
        msg = f"unknown pooling '{pooling}'; {known}"
        raise ModelError(msg)
    return tuple(name for name in ORDER if name in names)


def pool(hidden: NDArray[Any], rows: Rows, names: tuple[str, ...]) -> NDArray[Any]:
    """Reduce ``hidden``, float32 [rows, width, dim], to [rows, dim * names]; ``SPLADES`` take logits."""
    vectors = [_pool(hidden, rows, name) for name in names]
    return vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=1)


def _pool(hidden: NDArray[Any], rows: Rows, name: str) -> NDArray[Any]:
    vectors: NDArray[Any]
    count = len(rows.lengths)
    if name == "cls":
        vectors = hidden[:, 0]
    elif name == "last":
        vectors = hidden[np.arange(count), rows.lengths - 1]
    elif name == "max":
        vectors = np.where(rows.mask[:, :, None], hidden, -np.inf).max(axis=1).astype(np.float32)
    elif name in SPLADES:
        vectors = _splade(hidden, rows, name)
    else:
        # One pass over the hidden states and no masked copy of them; padding has weight 0. Not matmul, which
        # would wake the BLAS library's own threads beside those of the runtime.
        vectors = np.einsum("rt,rtd->rd", _weights(rows, name), hidden)
    return vectors


def _splade(logits: NDArray[Any], rows: Rows, name: str) -> NDArray[Any]:
    """Compute what sentence-transformers' SpladePooling does."""
    if name.startswith("splade_sum"):
        total: NDArray[Any] = np.einsum("rt,rtd->rd", rows.mask.astype(np.float32), _saturated(logits, name))
        return total
    # The logarithm grows with the logit, so the largest logit gives the largest weight: one a column.
    largest: NDArray[Any] = np.where(rows.mask[:, :, None], logits, 0).max(axis=1)
    return _saturated(largest, name)


def _saturated(logits: NDArray[Any], name: str) -> NDArray[Any]:
    weights: NDArray[Any] = np.log1p(np.maximum(logits, 0))
    return np.log1p(weights) if name.endswith("log1p") else weights


def _weights(rows: Rows, name: str) -> NDArray[np.float32]:
    """Return how much each token counts."""
    lengths = rows.lengths[:, None].astype(np.float32)
    if name == "mean_sqrt":
        return (rows.mask / np.sqrt(lengths)).astype(np.float32)
    if name == "weighted_mean":
        places = np.arange(1, rows.mask.shape[1] + 1, dtype=np.float32) * rows.mask
        return (places / (lengths * (lengths + 1) / 2)).astype(np.float32)
    return (rows.mask / lengths).astype(np.float32)
