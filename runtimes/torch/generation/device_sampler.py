"""Chooses tokens where the logits are: the rules of ``headrace.runtimes.generation.truncation`` in torch.

The operations, their order and the fate of ties are the same. What differs is rounding: the exponentials may
differ in the last bit of float32, and sums are float64 all the way, where NumPy's begin in float32. A uniform
number that comes within some 1e-7 of the border between two tokens may so choose the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from headrace.runtimes.generation.base import Draw
from headrace.runtimes.torch.generation.transfers import to_device

_AT_ONCE: Final = 2**22
"""Logits that are weighed at once: each takes some 40 bytes meanwhile."""

_COLDEST: Final = 1e-30
"""Below this temperature the reciprocal would leave float32."""


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token for each row of ``logits`` [rows, vocabulary], int64, and whether the row was sound.

    A row is sound when its maximum is finite and nothing in it is NaN; the token of another is any.
    """
    top, tokens = logits.max(dim=1)
    sound = torch.isfinite(top)
    size = logits.shape[1]
    drawn = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    # rows that only need their weights are kept apart from those that are sorted
    filtered = [row for row in drawn if draws[row].top_p < 1 or 0 < draws[row].top_k < size]
    whole = [row for row in drawn if not (draws[row].top_p < 1 or 0 < draws[row].top_k < size)]
    most = max(1, _AT_ONCE // size)
    for rows in (whole, filtered):
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            places = to_device(torch.tensor(part), logits.device)
            found = _drawn(logits[places].float(), [draws[row] for row in part])
            tokens[places] = torch.where(found >= 0, found, tokens[places])
    return tokens, sound


def _drawn(rows: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Return the tokens of float32 ``rows`` that are at the draws' uniform numbers, -1 where none is."""
    size = rows.shape[1]
    numbers = to_device(
        torch.tensor(
            [(1.0 / max(d.temperature, _COLDEST), d.top_p, min(d.min_p, 1.0), d.uniform) for d in draws],
            dtype=torch.float64,
        ),
        rows.device,
    )
    heat, top_p, min_p, uniform = numbers[:, :, None].unbind(1)
    weights = (rows - rows.amax(dim=1, keepdim=True)).mul_(heat.float()).exp_()
    kept = [draw.top_k if 0 < draw.top_k < size else size for draw in draws]
    if min(kept) < size:
        weights.masked_fill_(~_best(rows, kept), 0)
    if any(draw.top_p < 1 for draw in draws):
        _keep_top_p(weights, top_p)
    if any(draw.min_p > 0 for draw in draws):
        weights.masked_fill_(weights < min_p.float(), 0)
    sums = weights.cumsum(dim=1, dtype=torch.float64)
    total = sums[:, -1:].contiguous()
    places = torch.searchsorted(sums, uniform * total, right=True)
    # the product may be rounded up to the sum of all
    places = torch.where(places < size, places, torch.searchsorted(sums, total)).clamp_(max=size - 1)
    return torch.where(weights.gather(1, places) > 0, places, -1)[:, 0]


def _best(rows: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """Mark the ``kept[i]`` largest values of row ``i``, and those equal to the last of them."""
    size = rows.shape[1]
    most = max(count for count in kept if count < size)
    values = rows.topk(most, dim=1).values
    last = to_device(torch.tensor([min(count, most) - 1 for count in kept]), rows.device)
    bound = values.gather(1, last[:, None])
    every = to_device(torch.tensor([count == size for count in kept]), rows.device)
    return (rows >= bound) | every[:, None]


def _keep_top_p(weights: torch.Tensor, top_p: torch.Tensor) -> None:
    """Zero the least likely tokens while their sum is within what ``top_p`` leaves; of equals the first."""
    ascending, order = weights.sort(dim=1, stable=True)
    sums = ascending.cumsum(dim=1, dtype=torch.float64)
    dropped = sums <= (1 - top_p.clamp(max=1.0)) * sums[:, -1:]
    # the most likely token stays whatever the budget
    dropped[:, -1] = False
    weights.scatter_(1, order, ascending.masked_fill_(dropped, 0))
