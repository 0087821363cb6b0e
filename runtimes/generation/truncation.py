"""From logits to the weights that a token is drawn by: temperature, top-k, top-p, min-p, typical-p.

The rules, their order and the fate of ties are those of transformers' logits warpers. Weights are
probabilities relative to the most likely token; the ones that were dropped are 0.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation.logprobs import Row, kth_largest
from headrace.runtimes.generation.parameters import Sampling

_BIN_SHIFT: Final = 18
"""Low bits of a float32 that share a bin: 32 bins for each power of two."""

_DRAW_BLOCK: Final = 256
"""Weights that are summed together before a draw looks into one such block."""

_COLDEST: Final = 1e-30
"""Below this temperature the reciprocal would leave float32."""


class Weights(NamedTuple):
    """Unnormalised float32 probabilities: ``values[i]`` belongs to token ``ids[i]``, or ``i`` without ids."""

    ids: NDArray[np.intp] | None
    values: Row

    def draw(self, uniform: float) -> int:
        """Return the token at ``uniform``, in [0, 1), of the cumulative distribution in order of ids."""
        index = _inverse_cdf(self.values, uniform)
        return index if self.ids is None else int(self.ids[index])


def truncate(row: Row, sampling: Sampling) -> Weights:
    """Apply temperature and filters to the logits ``row``, whose maximum must be finite.

    ``sampling.temperature`` must not be 0. At least one token keeps its weight.
    """
    ids: NDArray[np.intp] | None = None
    top = row.max()
    if 0 < sampling.top_k < row.size:
        ids = np.flatnonzero(row >= np.float32(kth_largest(row, sampling.top_k)))
        row = row[ids]
    values = np.exp((row - top) * np.float32(1.0 / max(sampling.temperature, _COLDEST)))
    if sampling.top_p < 1:
        total = float(values.sum())
        budget = (1 - sampling.top_p) * total
        # tokens this unlikely do not fill the budget even all together, so they go first, and unsorted
        likely = values > np.float32(0.5 * budget / values.size)
        below = 0.0
        if 4 * np.count_nonzero(likely) < values.size:
            kept = np.flatnonzero(likely)
            ids = kept if ids is None else ids[kept]
            values = values[kept]
            below = total - float(values.sum())
        _keep_top_p(values, budget, below)
    if sampling.min_p > 0:
        values *= values >= np.float32(min(sampling.min_p, 1.0))
    if sampling.typical_p < 1:
        _keep_typical(values, sampling.typical_p)
    return Weights(ids, values)


def _keep_top_p(values: Row, budget: float, below: float) -> None:
    """Zero the least likely tokens while their sum, on top of ``below``, stays within ``budget``."""
    bins = values.view(np.int32) >> _BIN_SHIFT
    cut, below = _cut(bins, values, budget, below, "right")
    values *= bins >= cut
    members = np.flatnonzero(bins == cut)
    members = members[np.argsort(values[members], kind="stable")]
    sums = below + np.cumsum(values[members], dtype=np.float64)
    # the most likely token stays whatever the budget
    dropped = min(int(np.searchsorted(sums, budget, side="right")), members.size - 1)
    values[members[:dropped]] = 0


def _keep_typical(values: Row, mass: float) -> None:
    """Keep the tokens whose information is nearest to the expected one until they sum to ``mass``."""
    possible = np.flatnonzero(values)
    weights = values[possible]
    weights /= weights.sum()
    information = -np.log(weights)
    distance = np.abs(information - (information * weights).sum())
    bins = distance.view(np.int32) >> _BIN_SHIFT
    cut, below = _cut(bins, weights, mass, 0.0, "left")
    members = np.flatnonzero(bins == cut)
    members = members[np.argsort(distance[members], kind="stable")]
    sums = below + np.cumsum(weights[members], dtype=np.float64)
    last = members[min(int(np.searchsorted(sums, mass, side="left")), members.size - 1)]
    values[possible[distance > distance[last]]] = 0


def _cut(
    bins: NDArray[np.int32], weights: Row, mass: float, below: float, side: Literal["left", "right"]
) -> tuple[int, float]:
    """Find the bin in which ``below`` and the weights in order of bins reach (left) or pass (right) ``mass``.

    Bins of non-negative float32 keys follow the order of the keys, so that only one bin is ever sorted.
    Returns the bin and the sum of all that is below it.
    """
    sums = below + np.cumsum(np.bincount(bins, weights))
    cut = min(int(np.searchsorted(sums, mass, side=side)), sums.size - 1)
    return cut, float(sums[cut - 1]) if cut else below


def _inverse_cdf(values: Row, uniform: float) -> int:
    """Return the first index whose running sum passes ``uniform`` of the total; never a zero weight."""
    totals = np.cumsum(
        np.add.reduceat(values, np.arange(0, values.size, _DRAW_BLOCK), dtype=np.float32), dtype=np.float64
    )
    target = uniform * float(totals[-1])
    block = _first_above(totals, target)
    passed = float(totals[block - 1]) if block else 0.0
    start = block * _DRAW_BLOCK
    inner = passed + np.cumsum(values[start : start + _DRAW_BLOCK], dtype=np.float64)
    return start + _first_above(inner, target)


def _first_above(totals: NDArray[np.float64], target: float) -> int:
    """Return the first index whose running sum is above ``target``, or where the sum reaches its end."""
    index = int(np.searchsorted(totals, target, side="right"))
    return index if index < totals.size else int(np.searchsorted(totals, totals[-1], side="left"))
