"""Attention of packed texts, each to itself; what transformers' encoders call."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch.nn import functional

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch.generation.interface import refuse_unknown
from headrace.runtimes.torch.generation.visible import Visible
from headrace.runtimes.torch.packed_layout import Group, Layout, Unpadded

NAME: Final = "headrace_packed"
"""``attn_implementation`` of models that call :func:`attend`."""

_WIDEST: Final = 256
_WIDTHS: Final = 8
"""Heads of flash attention are at most so wide, and a multiple of this."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    headrace: Layout | Unpadded | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend packed texts, [1, heads, tokens, width]; the result is [1, tokens, heads, width].

    Texts of an ``Unpadded`` batch are rows: [rows, heads, length, width], [rows, length, heads, width].

    Raises:
        ModelError: the model asks for a kind of attention that is not computed here.
    """
    del module, is_causal  # what is seen is in the mask
    if headrace is None:
        msg = "it does not hand its keywords on to its attention"
        raise ModelError(msg)
    refuse_unknown(others, dropout)
    if not isinstance(attention_mask, Visible) or not attention_mask.known:
        msg = "its attention mask is neither full, causal nor a sliding window"
        raise ModelError(msg)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if isinstance(headrace, Unpadded):
        return _equal(query, key, value, attention_mask, scale), None
    compute = varlen if takes_varlen(query, value) else by_length
    return compute(query, key, value, headrace, attention_mask, scale), None


def takes_varlen(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether flash attention for texts of unlike length can compute this: CUDA, 16 bits, Ampere or newer."""
    width = query.shape[-1]
    return (
        takes_varlen_on(query.device, query.dtype)
        and width == value.shape[-1]
        and width <= _WIDEST
        and width % _WIDTHS == 0
    )


def takes_varlen_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has flash attention for a dtype."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def varlen_window(visible: Visible) -> tuple[int, int]:
    """Return how many tokens before and behind a token are seen, as ``varlen_attn`` counts; -1 is all."""
    if visible.causal:
        # A window counts the token itself here, and does not there.
        return (visible.window - 1 if visible.window else -1, 0)
    return (visible.window, visible.window) if visible.window else (-1, -1)


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    visible: Visible,
    scale: float,
) -> torch.Tensor:
    """Attend as :func:`attend` does, in one call for all texts."""
    from torch.nn.attention.varlen import varlen_attn

    # A tuple only where more than the result is asked for.
    result = cast(
        "torch.Tensor",
        varlen_attn(
            _packed(query),
            _packed(key),
            _packed(value),
            layout.bounds,
            layout.bounds,
            layout.longest,
            layout.longest,
            scale=scale,
            window_size=varlen_window(visible),
            enable_gqa=query.shape[1] != key.shape[1],
        ),
    )
    return result[None]


def by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    visible: Visible,
    scale: float,
) -> torch.Tensor:
    """Attend as :func:`attend` does, in one call for each length that texts have."""
    rows, keys, values = _packed(query), _packed(key), _packed(value)
    parts = [
        _equal(_rows(rows, group), _rows(keys, group), _rows(values, group), visible, scale)
        for group in layout.groups
    ]
    return torch.cat([part.flatten(0, 1) for part in parts])[None]


def _packed(states: torch.Tensor) -> torch.Tensor:
    """Take [1, heads, tokens, width] to [tokens, heads, width]."""
    return states[0].transpose(0, 1)


def _rows(packed: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the texts of a group out of [tokens, heads, width], as [rows, heads, length, width]."""
    part = packed[group.first : group.last]
    return part.view(group.rows, group.length, *part.shape[1:]).transpose(1, 2)


def _equal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: Visible, scale: float
) -> torch.Tensor:
    """Attend texts of one length, [rows, heads, length, width]; gives [rows, length, heads, width]."""
    length = query.shape[2]
    # A window that no text is longer than hides nothing.
    windowed = 0 < visible.window < length
    result = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen(length, visible, query.device) if windowed else None,
        is_causal=visible.causal and not windowed,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result.transpose(1, 2)


def seen(length: int, visible: Visible, device: torch.device) -> torch.Tensor:
    """Return which tokens each token of a text sees, bool [length, length]."""
    places = torch.arange(length, device=device)
    ahead = places[None] - places[:, None]
    if visible.causal:
        return (ahead <= 0) & (ahead > -visible.window) if visible.window else ahead <= 0
    return ahead.abs() <= (visible.window or length)
