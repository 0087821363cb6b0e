"""KV cache of decoders with slots: one contiguous row for each running sequence, and a pool of blocks.

Kernels that want a sequence's KV in one piece read and write the rows. The pool holds what finished sequences
left, by block, for later ones that begin with the same tokens. Both are reserved at full size. Rows take
memory where they were written; the pool, which fills up sooner or later, takes its own while nothing runs.

numpy only: the torch decoder looks at the same memory through ``torch.from_numpy``.
"""

from __future__ import annotations

import heapq
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headrace.runtimes.generation.reserved import Reserved


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a KV cache.

    Attributes:
        planes: keys and values of all layers: twice as many as there are layers.
        heads: KV heads.
        size: features of a head.
        dtype: of the elements.
        slots: sequences at once.
        tokens: longest sequence.
        block_tokens: tokens in a block.
        blocks: blocks of the pool; 0 keeps none.
        keep_tokens: a row that was used further than this gives its memory back when its sequence ends.
    """

    planes: int
    heads: int
    size: int
    slots: int
    tokens: int
    block_tokens: int
    blocks: int = 0
    keep_tokens: int = 0
    dtype: DTypeLike = np.float32

    @property
    def row_tokens(self) -> int:
        """Tokens that a row has room for: ``tokens``, rounded up so that rows begin at memory pages."""
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, self.size * np.dtype(self.dtype).itemsize)
        return -(-self.tokens // step) * step


class SlotCache:
    """Rows and blocks, and which slot has which row.

    A slot takes the lowest free row at its first use, so the rows in use lie together at the beginning;
    :meth:`gather` closes the gaps that finished sequences left.
    """

    def __init__(self, shape: CacheShape) -> None:
        """Reserve the memory; none of it is touched."""
        self._shape = shape
        row = (shape.heads, shape.row_tokens, shape.size)
        size = np.dtype(shape.dtype).itemsize
        # Rows are written from their beginnings: a huge page for each would take far more than was written.
        self._memory = Reserved(shape.planes * shape.slots * math.prod(row) * size, huge=False)
        self._rows = self._memory.array(shape.dtype).reshape(shape.planes, shape.slots, *row)
        block = (shape.planes, shape.heads, shape.block_tokens, shape.size)
        self._kept: Reserved | None = None
        self._pool: NDArray[Any] | None = None
        if shape.blocks:
            self._kept = Reserved(shape.blocks * math.prod(block) * size, huge=True)
            self._pool = self._kept.array(shape.dtype).reshape(shape.blocks, *block)
        self._row_of: dict[int, int] = {}
        self._slot_of: dict[int, int] = {}
        self._free = list(range(shape.slots))
        self._lengths = [0] * shape.slots
        self._touched = [0] * shape.slots

    @property
    def rows(self) -> NDArray[Any]:
        """All rows, [planes, slots, heads, row tokens, size]; writable, the address never changes."""
        return self._rows

    def prepare(self) -> bool:
        """Take some of the pool's memory before it is needed; False when there is no more to take."""
        return self._kept is not None and self._kept.populate()

    def row(self, slot: int) -> int:
        """The row of ``slot``, taken now if it has none."""
        row = self._row_of.get(slot)
        if row is None:
            row = heapq.heappop(self._free)
            self._row_of[slot], self._slot_of[row] = row, slot
            self._lengths[row] = 0
        return row

    def length(self, row: int) -> int:
        """Tokens that ``row`` holds; 0 when it is free."""
        return self._lengths[row]

    def advance(self, slot: int, start: int, count: int, blocks: Sequence[int]) -> None:
        """Note that ``count`` tokens from ``start`` on were written into the slot's row.

        Blocks that are complete now are copied into the pool.
        """
        row, end = self.row(slot), start + count
        self._set_length(row, end)
        if self._pool is None:
            return
        size = self._shape.block_tokens
        for index in range(start // size, end // size):
            self._pool[blocks[index]] = self._rows[:, row, :, index * size : (index + 1) * size]

    def load(self, slot: int, blocks: Sequence[int], tokens: int) -> None:
        """Fill the slot's row with the first ``tokens`` tokens (whole blocks) from the pool.

        Raises:
            ValueError: there is no pool, or ``tokens`` are no whole blocks.
        """
        size = self._shape.block_tokens
        if self._pool is None or tokens % size:
            msg = f"{tokens} cached tokens cannot be loaded in blocks of {size}"
            raise ValueError(msg)
        row = self.row(slot)
        for index in range(tokens // size):
            self._rows[:, row, :, index * size : (index + 1) * size] = self._pool[blocks[index]]
        self._set_length(row, tokens)

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Give ``target`` the first ``tokens`` tokens of ``source``, in its row and in its own blocks."""
        self._copy_row(self.row(source), self.row(target), tokens)
        if self._pool is None:
            return
        for index in range(tokens // self._shape.block_tokens):
            if source_blocks[index] != target_blocks[index]:
                self._pool[target_blocks[index]] = self._pool[source_blocks[index]]

    def release(self, slot: int) -> None:
        """Free the slot's row; a slot without one is left alone."""
        row = self._row_of.pop(slot, None)
        if row is not None:
            del self._slot_of[row]
            self._vacate(row)

    def gather(self, slots: Sequence[int]) -> int:
        """Move the rows of ``slots`` to the front, as far as there are free rows.

        Returns:
            The number of rows from 0 on that include all of ``slots``. Rows of other slots that are in use
            may be among them.
        """
        wanted = sorted((self.row(slot) for slot in slots), reverse=True)
        for at, row in enumerate(wanted):
            if not self._free or self._free[0] > row:
                break
            self._move(row, self._free[0])
            wanted[at] = heapq.heappop(self._free)
            self._vacate(row)
        return max(wanted, default=-1) + 1

    def _move(self, source: int, target: int) -> None:
        self._copy_row(source, target, self._lengths[source])
        slot = self._slot_of.pop(source)
        self._row_of[slot], self._slot_of[target] = target, slot

    def _copy_row(self, source: int, target: int, tokens: int) -> None:
        self._rows[:, target, :, :tokens] = self._rows[:, source, :, :tokens]
        self._set_length(target, tokens)

    def _set_length(self, row: int, tokens: int) -> None:
        self._lengths[row] = tokens
        self._touched[row] = max(self._touched[row], tokens)

    def _vacate(self, row: int) -> None:
        """Put ``row`` back among the free ones, without its memory when it took more than its share."""
        heapq.heappush(self._free, row)
        self._lengths[row] = 0
        if self._touched[row] <= self._shape.keep_tokens:
            return
        size = self._rows[0, 0].nbytes
        for plane in range(self._shape.planes):
            self._memory.discard((plane * self._shape.slots + row) * size, size)
        self._touched[row] = 0
