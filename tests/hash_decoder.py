"""A decoder for tests whose logits depend on everything that it finds in its KV storage.

Its KV of a token is the token's id. The logits of a position are made of a hash of all ids up to it, read
back from where the engine's slots and block tables say they lie, so every mistake in that bookkeeping
changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.base import Chunk, GenerationSpec, Together
from headrace.runtimes.generation.groups import groups

POISON = -1


def history_logits(history: NDArray[np.int32], vocabulary_size: int) -> NDArray[np.float32]:
    """Logits behind ``history``: mostly of its last two ids, so that text repeats, a little of all of it."""

    def noise(ids: NDArray[np.int32]) -> NDArray[np.float32]:
        seed = int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        return np.random.Generator(np.random.Philox(seed)).standard_normal(vocabulary_size, np.float32)

    return noise(history[-2:]) * np.float32(2) + noise(history) * np.float32(0.5)


class HashDecoder:
    """Rows for slots beside a pool of blocks, or (``paged``) the pool alone. Checks what the engine asks."""

    platform = "hash"

    def __init__(
        self,
        spec: GenerationSpec,
        vocabulary_size: int = 40,
        *,
        paged: bool = False,
        together: Together = "all",
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.spec = spec
        self.paged = paged
        self.together = together
        self.pool = np.full((spec.kv_tokens // spec.block_tokens, spec.block_tokens), POISON, np.int32)
        self.rows = np.full((spec.max_sequences, spec.max_tokens), POISON, np.int32)
        self.held: set[int] = set()
        self.steps: list[list[Chunk]] = []
        self.computed = 0
        self.copies = 0
        self.prepared = 0
        self.fail_on: int | None = None  # a token id whose computation fails
        self.nan_on: int | None = None  # a token id behind which logits are NaN

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        self.steps.append(
            [Chunk(c.slot, list(c.tokens), c.start, list(c.blocks), c.logits, c.fresh) for c in chunks]
        )
        assert chunks
        slots = [chunk.slot for chunk in chunks]
        assert len(set(slots)) == len(slots)
        assert len(groups(chunks, self.together)) == 1
        if any(self.fail_on in chunk.tokens for chunk in chunks):
            raise ModelError("the decoder was told to fail")
        rows = [row for chunk in chunks for row in self._compute(chunk)]
        return np.stack(rows) if rows else np.empty((0, self.vocabulary_size), np.float32)

    def _compute(self, chunk: Chunk) -> Iterator[NDArray[np.float32]]:
        size = self.spec.block_tokens
        end = chunk.start + len(chunk.tokens)
        assert chunk.tokens
        assert 0 <= chunk.logits <= len(chunk.tokens)
        assert 0 <= chunk.slot < self.spec.max_sequences
        assert end <= self.spec.max_tokens
        assert len(chunk.blocks) * size >= end
        assert len(set(chunk.blocks)) == len(chunk.blocks)
        row = self.rows[chunk.slot]
        if chunk.fresh:
            assert chunk.slot not in self.held
            assert chunk.start % size == 0
            self.held.add(chunk.slot)
            row[:] = POISON
            row[: chunk.start] = self.pool[list(chunk.blocks[: chunk.start // size])].reshape(-1)
        assert chunk.slot in self.held
        self.computed += len(chunk.tokens)
        if self.paged:
            for position, token in enumerate(chunk.tokens, chunk.start):
                self.pool[chunk.blocks[position // size], position % size] = token
            history = self.pool[list(chunk.blocks)].reshape(-1)[:end]
        else:
            row[chunk.start : end] = chunk.tokens
            for block in range(chunk.start // size, end // size):
                self.pool[chunk.blocks[block]] = row[block * size : (block + 1) * size]
            history = row[:end]
        assert (history != POISON).all()
        for position in range(end - chunk.logits, end):
            logits = history_logits(history[: position + 1], self.vocabulary_size)
            if self.nan_on is not None and self.nan_on == history[position]:
                logits[3] = np.nan
            yield logits

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        assert source in self.held
        assert target not in self.held
        self.held.add(target)
        self.copies += 1
        self.rows[target] = POISON
        self.rows[target, :tokens] = self.rows[source, :tokens]
        assert len(target_blocks) * self.spec.block_tokens >= tokens
        for mine, theirs in zip(target_blocks, source_blocks, strict=False):
            if mine != theirs:
                self.pool[mine] = self.pool[theirs]

    def release(self, slot: int) -> None:
        # a slot may be given back before its first chunk ran
        self.held.discard(slot)
        self.rows[slot] = POISON

    def prepare(self) -> bool:
        if self.prepared == 3:
            return False
        self.prepared += 1
        return True

    def close(self) -> None:
        pass
