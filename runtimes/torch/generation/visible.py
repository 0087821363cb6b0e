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
    """A token sees itself and those before it; with a ``window`` only so many, its own included.

    When it is not ``known``, the mask is something else.
    """

    window: int = 0
    known: bool = True


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
    places = torch.tensor(sorted(edge for edge in edges if edge >= 0))
    query, key = places[:, None], places[None]
    expected = key <= query
    if window:
        expected &= key > query - window
    zero = torch.zeros((), dtype=torch.int64)
    known = torch.equal(mask_function(zero, zero, query, key).expand_as(expected), expected)
    return Visible(window, known=known)
