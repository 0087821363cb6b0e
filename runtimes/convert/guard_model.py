"""The prompt-injection classifier of the package metatronnanoguard as a function of its weights.

A small bidirectional transformer: rotary positions, normalised queries and keys, squared ReLU, mean pooling.
It was trained, and is used by its package, on texts padded to 512 tokens with every token attending to the
padding too; only the pooling leaves it out. Masking the padding instead would be some twenty times faster on
short texts, but doubles the share of harmless sentences that are flagged. So the network fills up every text
itself: a text gets the package's answer, in every batch and however far the caller padded it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.runtimes.convert.tracing import Weights

if TYPE_CHECKING:
    import torch

    Rotary = tuple[torch.Tensor, torch.Tensor]

ROTARY_BASE: Final = 10000
EPSILON: Final = 2.0**-23
"""Machine epsilon of float32."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes from the checkpoint; ``sequence_len`` is the length of every text in tokens, with padding."""

    sequence_len: int
    n_layer: int
    n_head: int
    n_embd: int


def logits(
    weights: Weights, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, size: Dimensions, padding: int
) -> torch.Tensor:
    """Ids and mask int64 [batch, length] -> [batch, 2] (safe, injection).

    ``length`` is at most ``sequence_len``; where the mask is 0 any id may stand: ``padding`` is read there.
    """
    import torch
    from torch.nn import functional

    batch, length = input_ids.shape
    ids = torch.where(attention_mask > 0, input_ids, padding)
    ids = torch.cat([ids, ids.new_full((batch, size.sequence_len - length), padding)], 1)
    rotary = _rotary(size.sequence_len, size.n_embd // size.n_head)
    x = first = _normalise(weights["transformer.wte.weight"][ids])
    for layer in range(size.n_layer):
        x = weights["resid_lambdas"][layer] * x + weights["x0_lambdas"][layer] * first
        name = f"transformer.h.{layer}"
        x = x + _attention(weights, f"{name}.attn", _normalise(x), rotary, size.n_head)
        x = x + _feed_forward(weights, f"{name}.mlp", _normalise(x))
    mask = attention_mask.float()
    pooled = (_normalise(x[:, :length]) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    pooled = functional.layer_norm(
        pooled, (size.n_embd,), weights["cls_norm.weight"], weights["cls_norm.bias"]
    )
    return functional.linear(pooled, weights["cls_head.weight"], weights["cls_head.bias"])


def _normalise(x: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to a root mean square of one."""
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


def _rotary(length: int, width: int) -> Rotary:
    """Cosines and sines [1, length, 1, width / 2]; rounded to bfloat16, as the weights were trained with."""
    import torch

    frequencies = 1.0 / ROTARY_BASE ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[None, :, None, :]
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def _rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn each pair (i, i + width / 2) of [batch, length, heads, width] by its position's angle."""
    import torch

    cosine, sine = rotary
    half = cosine.shape[-1]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine + second * sine, second * cosine - first * sine], -1)


def _attention(weights: Weights, name: str, x: torch.Tensor, rotary: Rotary, heads: int) -> torch.Tensor:
    """Attention of every token of [batch, length, width] to every token."""
    shape = x.shape[0], x.shape[1], heads, x.shape[2] // heads
    q, k, v = ((x @ weights[f"{name}.c_{part}.weight"].T).reshape(shape) for part in "qkv")
    q, k = (_normalise(_rotate(part, rotary)).transpose(1, 2) for part in (q, k))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    mixed = scores.softmax(-1) @ v.transpose(1, 2)
    result: torch.Tensor = mixed.transpose(1, 2).reshape(x.shape) @ weights[f"{name}.c_proj.weight"].T
    return result


def _feed_forward(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Two layers with a squared ReLU between."""
    inner = (x @ weights[f"{name}.c_fc.weight"].T).relu()
    result: torch.Tensor = (inner * inner) @ weights[f"{name}.c_proj.weight"].T
    return result
