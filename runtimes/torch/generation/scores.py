"""Attention of query rows over keys and values, in the variations that torch's own has not."""

from __future__ import annotations

import torch
from torch.nn import functional

from headrace.runtimes.torch.generation.network import Form


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attend ``query`` to ``key`` and ``value``.

    ``query`` is [sequences, heads, rows, width], the others [sequences, heads, tokens, width]; ``mask`` is
    added to the scores and broadcasts to [sequences, heads, rows, tokens]. ``form.sinks`` is [heads, rows],
    or has sequences before these.
    """
    if form.plain:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=form.scale)
    scores = torch.matmul(query, key.transpose(2, 3)).float() * form.scale
    if form.softcap:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is not None:
        scores = scores + mask
    if form.sinks is not None:
        sinks = form.sinks.float()[..., None].expand(*scores.shape[:3], 1)
        shares = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        shares = torch.softmax(scores, dim=-1)
    return torch.matmul(shares.to(value.dtype), value)
