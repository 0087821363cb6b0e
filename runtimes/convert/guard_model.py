"""The prompt-injection classifier of the package metatronnanoguard in torch, with its parameter names.

A small bidirectional transformer: rotary positions, normalised queries and keys, squared ReLU, mean pooling.
It was trained, and is used by its package, on texts padded to 512 tokens with every token attending to the
padding too; only the pooling leaves it out. Masking the padding instead would be some twenty times faster on
short texts, but doubles the share of harmless sentences that are flagged. So the network fills up every text
itself: a text gets the package's answer, in every batch and however far the caller padded it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

ROTARY_BASE: Final = 10000
EPSILON: Final = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Dimensions:
    """Sizes from the checkpoint; ``sequence_len`` is the length of every text in tokens, with padding."""

    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    num_classes: int


def root_mean_square_norm(x: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to a root mean square of one."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def rotary_table(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, length, 1, width / 2]; rounded to bfloat16, as the weights were trained with."""
    frequencies = 1.0 / ROTARY_BASE ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[None, :, None, :]
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + width / 2) of [batch, length, heads, width] by its position's angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine + second * sine, second * cosine - first * sine], -1)


class Attention(nn.Module):
    """Attention of every token to every token."""

    def __init__(self, width: int, heads: int) -> None:
        """Four square projections without bias."""
        super().__init__()
        self.heads = heads
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[batch, length, width] -> the same."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.c_q, self.c_k, self.c_v))
        q, k = (root_mean_square_norm(rotate(part, *rotary)).transpose(1, 2) for part in (q, k))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = scores.softmax(-1) @ v.transpose(1, 2)
        projected: torch.Tensor = self.c_proj(mixed.transpose(1, 2).flatten(-2))
        return projected


class FeedForward(nn.Module):
    """Two layers with a squared ReLU between."""

    def __init__(self, width: int) -> None:
        """Four times as wide inside."""
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] -> the same."""
        projected: torch.Tensor = self.c_proj(self.c_fc(x).relu().square())
        return projected


class Block(nn.Module):
    """Attention and feed-forward, each with its input normalised and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        """One layer."""
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[batch, length, width] -> the same."""
        x = x + self.attn(root_mean_square_norm(x), rotary)
        return x + self.mlp(root_mean_square_norm(x))


class PromptGuard(nn.Module):
    """input_ids and attention_mask, int64 [batch, length] -> logits [batch, classes]."""

    def __init__(self, size: Dimensions, padding: int) -> None:
        """Build the layers; the weights are random until a state is loaded. ``padding`` is a token id."""
        super().__init__()
        self.length, self.padding = size.sequence_len, padding
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(size.vocab_size, size.n_embd),
                "h": nn.ModuleList(Block(size.n_embd, size.n_head) for _ in range(size.n_layer)),
            }
        )
        self.cls_norm = nn.LayerNorm(size.n_embd)
        self.cls_head = nn.Linear(size.n_embd, size.num_classes)
        self.resid_lambdas = nn.Parameter(torch.ones(size.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(size.n_layer))
        cosine, sine = rotary_table(size.sequence_len, size.n_embd // size.n_head)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See the class; length is at most ``sequence_len``, what the mask leaves out may hold any id."""
        batch, length = input_ids.shape
        ids = torch.where(attention_mask > 0, input_ids, self.padding)
        ids = torch.cat([ids, ids.new_full((batch, self.length - length), self.padding)], 1)
        x = first = root_mean_square_norm(self.transformer["wte"](ids))
        for index, block in enumerate(self.transformer["h"]):
            x = block(
                self.resid_lambdas[index] * x + self.x0_lambdas[index] * first, (self.cosine, self.sine)
            )
        mask = attention_mask.float()
        pooled = (root_mean_square_norm(x[:, :length]) * mask[..., None]).sum(1)
        pooled = pooled / mask.sum(1, keepdim=True).clamp(min=1)
        logits: torch.Tensor = self.cls_head(self.cls_norm(pooled))
        return logits
