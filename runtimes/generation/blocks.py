"""The KV cache's blocks: who holds which, and which hold a prefix that a later sequence can use.

A full block is known by the hash of its tokens and of everything before them, so equal keys mean equal
prefixes. Keys are 128 bits of BLAKE2b: nobody finds two prefixes with one key, so the tokens themselves need
not be kept. The salt and the adapter are part of the first key, so neither is ever shared with another.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

_KEY_SIZE: Final = 16


def root_key(cache_salt: str, adapter: str) -> bytes:
    """Return the key that stands before the first block."""
    salt = cache_salt.encode()
    digest = blake2b(len(salt).to_bytes(8, "little"), digest_size=_KEY_SIZE)
    digest.update(salt)
    digest.update(adapter.encode())
    return digest.digest()


def next_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the key of a full block of ``tokens`` behind the block of key ``parent``."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=_KEY_SIZE).digest()


class BlockManager:
    """Hands out ``total`` blocks by number.

    A block is held by one or more sequences, or free. A free block that was registered keeps its content
    until it is handed out again, least recently used first; a block without content is always taken before
    it. No operation looks at more blocks than it is given.
    """

    def __init__(self, total: int) -> None:
        """Start with every block free and empty."""
        self.total = total
        self._holders = [0] * total
        self._keys: list[bytes | None] = [None] * total
        self._empty = list(range(total - 1, -1, -1))
        # free blocks with content, least recently used first
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._cached: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._empty) + len(self._kept)

    def lookup(self, keys: Iterable[bytes]) -> list[int]:
        """Return the blocks that hold the longest known prefix of ``keys``; they are not held yet."""
        found = []
        for key in keys:
            block = self._cached.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """Count the blocks that are free now: what holding all of ``blocks`` takes from :attr:`free`."""
        holders = self._holders
        return sum(not holders[block] for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Add a holder to each block."""
        for block in blocks:
            if not self._holders[block]:
                del self._kept[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` blocks without usable content; there must be as many :attr:`free`."""
        taken = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Take a holder from each block. The end of a prefix is given up before its beginning."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._keys[block] is None:
                self._empty.append(block)
            else:
                self._kept[block] = None

    def register(self, block: int, key: bytes) -> None:
        """Say that a held block is full, computed, and what it holds.

        Where another block holds the same already, this one is freed without a trace later.
        """
        if self._keys[block] is None and key not in self._cached:
            self._keys[block] = key
            self._cached[key] = block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None
