"""Which blocks a sequence can use, because others computed the same tokens before it or are about to."""

from __future__ import annotations

from itertools import islice
from typing import Final

from headrace.runtimes.generation.blocks import BlockManager
from headrace.runtimes.generation.sequence import Sequence

AWAITED_BLOCKS: Final = 4
"""Blocks that another sequence is about to compute, from which on it is better to wait for them."""


class Prefixes:
    """The prefix cache, in terms of sequences.

    Attributes:
        queried_tokens: tokens of sequences that looked for a prefix.
        hit_tokens: how many of them were found.
    """

    def __init__(self, blocks: BlockManager, block_tokens: int) -> None:
        """Find prefixes in ``blocks``, each of ``block_tokens`` tokens."""
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._blocks = blocks
        self._size = block_tokens
        # keys of blocks that running sequences are about to compute, and how many do
        self._coming: dict[bytes, int] = {}

    def find(self, sequence: Sequence) -> list[int] | None:
        """Return the blocks of a waiting sequence that are cached; None when more are worth waiting for."""
        request = sequence.request
        if not request.caching or request.unscored:
            return []
        # one token at least has to be computed: its logits are what the next one is sampled from
        usable = (len(sequence.tokens) - 1) // self._size
        keys = sequence.known(usable, self._size)
        found = self._blocks.lookup(islice(keys, usable))
        awaited = keys[len(found) : min(usable, len(found) + AWAITED_BLOCKS)]
        if len(awaited) == AWAITED_BLOCKS and all(key in self._coming for key in awaited):
            return None
        return found

    def promise(self, sequence: Sequence) -> None:
        """Note that a sequence whose ``registered`` blocks were found is about to compute the others."""
        if not sequence.request.caching:
            return
        self.queried_tokens += len(sequence.tokens)
        self.hit_tokens += sequence.registered * self._size
        sequence.promised = len(sequence.tokens) // self._size
        for key in islice(
            sequence.known(sequence.promised, self._size), sequence.registered, sequence.promised
        ):
            self._coming[key] = self._coming.get(key, 0) + 1

    def register(self, sequence: Sequence) -> None:
        """Have others find the blocks of a sequence that are computed."""
        full = sequence.computed // self._size
        if full <= sequence.registered or not sequence.request.caching:
            return
        keys = sequence.known(full, self._size)
        for place in range(sequence.registered, full):
            self._blocks.register(sequence.blocks[place], keys[place])
        self._settle(sequence, full)
        sequence.registered = full

    def withdraw(self, sequence: Sequence) -> None:
        """Have nobody wait for a sequence that gives up its blocks."""
        self._settle(sequence, sequence.promised)
        sequence.promised = 0

    def _settle(self, sequence: Sequence, end: int) -> None:
        for key in sequence.keys[sequence.registered : min(end, sequence.promised)]:
            self._coming[key] -= 1
            if not self._coming[key]:
                del self._coming[key]
