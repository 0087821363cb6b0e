"""KV cache in blocks: what a sequence has lies wherever its block table says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.torch.generation.network import KvShape


class PagedCache:
    """Keys and values of every layer: ``keys[layer]`` is [blocks, block tokens, heads, key width].

    ``spare`` is a block that no sequence has; rows that only fill a batch up write there.
    """

    def __init__(
        self,
        shapes: Sequence[KvShape],
        generation: GenerationSpec,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take the memory of ``generation.kv_tokens`` tokens."""
        self.block_tokens: Final = generation.block_tokens
        self.spare: Final = generation.kv_tokens // generation.block_tokens
        sizes = (self.spare + 1, generation.block_tokens)
        # Zeros, for what is hidden from a token is still multiplied, and nothing rids a sum of NaN.
        self.keys: Final = [
            torch.zeros((*sizes, shape.heads, shape.key_width), dtype=dtype, device=device)
            for shape in shapes
        ]
        self.values: Final = [
            torch.zeros((*sizes, shape.heads, shape.value_width), dtype=dtype, device=device)
            for shape in shapes
        ]

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy the content of the ``source`` blocks into the ``target`` blocks, one for one."""
        moved = [(old, new) for old, new in zip(source, target, strict=True) if old != new]
        if not moved:
            return
        old, new = torch.tensor(moved, dtype=torch.int64, device=self.keys[0].device).unbind(1)
        for blocks in (*self.keys, *self.values):
            blocks[new] = blocks[old]
