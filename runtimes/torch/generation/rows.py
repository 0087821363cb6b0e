"""The slots' KV cache as torch sees it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.slots import CacheShape, SlotCache
from headrace.runtimes.torch.generation.network import KvShape

_BITS: Final = MappingProxyType({2: np.uint16, 4: np.uint32})
"""NumPy's type for a torch dtype of so many bytes; NumPy has no bfloat16."""


class Rows:
    """Keys and values of every layer; layers of one shape share a :class:`SlotCache`.

    ``keys[layer]`` is [rows, heads, row tokens, key width], ``values[layer]`` likewise with the value width.
    All caches are told the same, so a slot has the same row in each.
    """

    def __init__(self, shapes: Sequence[KvShape], generation: GenerationSpec, dtype: torch.dtype) -> None:
        """Reserve the rows and, with a prefix cache, the blocks."""
        kinds = [(shape.heads, shape.key_width) for shape in shapes]
        kinds += [(shape.heads, shape.value_width) for shape in shapes]
        caches = {kind: _cache(kind, kinds.count(kind), generation, dtype) for kind in dict.fromkeys(kinds)}
        planes = {
            kind: iter(torch.from_numpy(cache.rows).view(dtype).unbind()) for kind, cache in caches.items()
        }
        tensors = [next(planes[kind]) for kind in kinds]
        self._caches = list(caches.values())
        self.keys: Final = tensors[: len(shapes)]
        self.values: Final = tensors[len(shapes) :]

    def row(self, slot: int) -> int:
        """Return the row of ``slot``; it keeps it until another is gathered or it is released."""
        rows = {cache.row(slot) for cache in self._caches}
        return rows.pop()

    def gather(self, slots: Sequence[int]) -> None:
        """Move the rows of ``slots`` together as far as there is room."""
        for cache in self._caches:
            cache.gather(slots)

    def load(self, slot: int, blocks: Sequence[int], tokens: int) -> None:
        """Fill the first ``tokens`` tokens of a slot from ``blocks``, of which all are whole."""
        for cache in self._caches:
            cache.load(slot, blocks, tokens)

    def advance(self, slot: int, start: int, count: int, blocks: Sequence[int]) -> None:
        """Note that ``count`` tokens from ``start`` on are in the slot's row; whole blocks are kept."""
        for cache in self._caches:
            cache.advance(slot, start, count, blocks)

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Give ``target`` the first ``tokens`` tokens of ``source``, in its row and its own blocks."""
        for cache in self._caches:
            cache.copy(source, target, source_blocks, target_blocks, tokens)

    def release(self, slot: int) -> None:
        """Free the slot's row."""
        for cache in self._caches:
            cache.release(slot)

    def prepare(self) -> bool:
        """Take some of the pools' memory; False when there is no more to take."""
        return any(cache.prepare() for cache in self._caches)


def _cache(kind: tuple[int, int], planes: int, generation: GenerationSpec, dtype: torch.dtype) -> SlotCache:
    heads, size = kind
    return SlotCache(
        CacheShape(
            planes=planes,
            heads=heads,
            size=size,
            slots=generation.max_sequences,
            tokens=generation.max_tokens,
            block_tokens=generation.block_tokens,
            blocks=generation.kv_tokens // generation.block_tokens if generation.prefix_cache else 0,
            keep_tokens=generation.kv_tokens // generation.max_sequences,
            dtype=_BITS[dtype.itemsize],
        )
    )
