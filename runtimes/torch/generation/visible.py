"""Masks of transformers' models, described instead of filled in.

Its models build one mask for each kind of layer and hand it to the attention function. For packed sequences
the mask would be tokens x tokens, so :func:`describe` says in a word which tokens a token sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Visible:
    """Which tokens of its sequence a token sees.

    ``causal``: itself and those before it; with a ``window`` only so many, its own included. Else all; with
    a ``window`` those that are at most so far away, on both sides. When it is not ``known``, the mask is
    something else.
    """

    window: int = 0
    known: bool = True
    causal: bool = True


def describe(
    *,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> Visible:
    """Describe the mask that ``mask_function(batch, head, query, key)`` computes.

    The keywords are those of transformers' ``AttentionMaskInterface``; ``local_size`` is a window or a chunk.
    Models make masks that none of their layers uses, so one that is not known is no error here.
    """
    if use_vmap:
        # The model lays a function of its own over the mask.
        return Visible(known=False)
    window = local_size or 0
    edges = {0, 1, 2, window - 1, window, window + 1, 2 * window, 2 * window + 1}
    places = sorted(edge for edge in edges if edge >= 0)
    index = torch.tensor(places)
    zero = index.new_zeros(())
    seen = mask_function(zero, zero, index[:, None], index[None])
    # Compared as lists: this runs in every step, and torch is slow with so few numbers.
    found = seen.expand(len(places), len(places)).tolist()
    # Place 1 from place 0: hidden by causal masks alone.
    causal = not found[0][1]
    expected = [[_sees(key - query, window, causal=causal) for key in places] for query in places]
    return Visible(window, known=found == expected, causal=causal)


def _sees(ahead: int, window: int, *, causal: bool) -> bool:
    """Whether a token sees the one that is so many places ahead of it."""
    if causal:
        return ahead <= 0 and (not window or ahead > -window)
    return not window or abs(ahead) <= window
