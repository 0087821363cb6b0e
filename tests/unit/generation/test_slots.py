"""Rows and blocks of the slot KV cache against a plain model of them."""

from __future__ import annotations

import random
import resource

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from headrace.runtimes.generation.slots import CacheShape, SlotCache

BLOCK = 4
SHAPE = CacheShape(planes=4, heads=2, size=8, slots=6, tokens=60, block_tokens=BLOCK, blocks=40)


def values(token: int, shape: CacheShape = SHAPE) -> NDArray[np.float32]:
    """What the tests write for one token: [planes, heads, size], different in each place."""
    count = shape.planes * shape.heads * shape.size
    places = (token + np.arange(count) / count).astype(np.float32)
    return places.reshape(shape.planes, shape.heads, shape.size)


def write(cache: SlotCache, slot: int, start: int, tokens: list[int], blocks: list[int]) -> None:
    """Compute ``tokens`` as a decoder does: into the row, then note it."""
    row = cache.row(slot)
    for offset, token in enumerate(tokens):
        cache.rows[:, row, :, start + offset] = values(token)
    cache.advance(slot, start, len(tokens), blocks)


def read(cache: SlotCache, slot: int, count: int) -> list[int]:
    """The tokens in a slot's row; every element must be that of the token."""
    row = cache.rows[:, cache.row(slot)]
    tokens = [int(row[0, 0, index, 0]) for index in range(count)]
    for index, token in enumerate(tokens):
        np.testing.assert_array_equal(row[:, :, index], values(token))
    return tokens


def test_rows_are_taken_from_the_front_and_begin_at_pages() -> None:
    """Each slot keeps its row; addresses are those of whole pages, so that memory can be given back."""
    cache = SlotCache(SHAPE)
    assert [cache.row(slot) for slot in (5, 0, 3)] == [0, 1, 2]
    assert cache.row(0) == 1
    assert SHAPE.row_tokens >= SHAPE.tokens
    assert cache.rows.shape == (4, 6, 2, SHAPE.row_tokens, 8)
    assert cache.rows[0, 1].ctypes.data % resource.getpagesize() == 0


def test_completed_blocks_are_found_by_another_slot() -> None:
    """A prefix comes back from the pool as it was written, although its sequence is gone."""
    cache = SlotCache(SHAPE)
    tokens = list(range(100, 111))
    write(cache, 0, 0, tokens[:3], [7, 3, 9])
    write(cache, 0, 3, tokens[3:], [7, 3, 9])
    cache.release(0)
    write(cache, 1, 0, [1] * 11, [20, 21, 22])
    cache.load(2, [7, 3], 8)
    assert read(cache, 2, 8) == tokens[:8]
    assert cache.length(cache.row(2)) == 8


def test_only_whole_blocks_of_a_pool_can_be_loaded() -> None:
    """Part of a block is not there, and without a pool nothing is."""
    with pytest.raises(ValueError, match="6 cached tokens"):
        SlotCache(SHAPE).load(0, [1, 2], 6)
    bare = SlotCache(CacheShape(planes=2, heads=1, size=8, slots=2, tokens=8, block_tokens=4))
    with pytest.raises(ValueError, match="cannot be loaded"):
        bare.load(0, [0], 4)


def test_copy_fills_the_row_and_the_blocks_that_differ() -> None:
    """The copy goes on by itself, and what it does not share with the original lies in its own blocks."""
    cache = SlotCache(SHAPE)
    write(cache, 0, 0, list(range(10)), [0, 1, 2])
    cache.copy(0, 1, [0, 1, 2], [0, 11, 12], 10)
    write(cache, 0, 10, [50, 51], [0, 1, 2])
    write(cache, 1, 10, [60, 61], [0, 11, 12])
    assert read(cache, 0, 12) == [*range(10), 50, 51]
    assert read(cache, 1, 12) == [*range(10), 60, 61]
    cache.load(2, [0, 11, 12], 12)
    assert read(cache, 2, 12) == [*range(10), 60, 61]
    cache.load(3, [0, 1, 2], 12)
    assert read(cache, 3, 12) == [*range(10), 50, 51]


def test_gather_moves_the_last_rows_into_the_gaps() -> None:
    """What is left after some have ended lies in the first rows, unchanged."""
    cache = SlotCache(SHAPE)
    for slot in range(6):
        write(cache, slot, 0, [slot * 10 + index for index in range(5 + slot)], [0, 1, 2])
    for slot in (0, 2, 3):
        cache.release(slot)
    assert cache.gather([1, 4, 5]) == 3
    assert sorted(cache.row(slot) for slot in (1, 4, 5)) == [0, 1, 2]
    for slot in (1, 4, 5):
        assert read(cache, slot, 5 + slot) == [slot * 10 + index for index in range(5 + slot)]
    assert cache.gather([1]) == cache.row(1) + 1
    assert cache.gather([]) == 0


def test_gather_leaves_a_row_in_use_where_it_is() -> None:
    """A sequence that takes no part keeps its row, even between those that do."""
    cache = SlotCache(SHAPE)
    for slot in range(3):
        write(cache, slot, 0, [slot], [0])
    assert cache.gather([0, 2]) == 3
    assert [cache.row(slot) for slot in range(3)] == [0, 1, 2]


def test_any_order_of_use_keeps_every_sequence() -> None:
    """A random walk over all operations agrees with lists of tokens."""
    generator = random.Random(7)
    cache = SlotCache(SHAPE)
    rows: dict[int, list[int]] = {}
    tables = {slot: list(range(slot * 6, slot * 6 + 6)) for slot in range(6)}
    for step in range(600):
        slot = generator.randrange(6)
        action = generator.randrange(5)
        if action == 0:
            cache.release(slot)
            rows.pop(slot, None)
        elif action == 1 and rows:
            source = generator.choice(list(rows))
            if source != slot:
                cache.copy(source, slot, tables[source], tables[slot], len(rows[source]))
                rows[slot] = list(rows[source])
        elif action == 2 and rows:
            chosen = generator.sample(list(rows), generator.randint(1, len(rows)))
            count = cache.gather(chosen)
            assert max(cache.row(other) for other in chosen) + 1 == count
        else:
            known = rows.setdefault(slot, [])
            new = [step * 8 + index for index in range(min(generator.randint(1, 5), 24 - len(known)))]
            if new:
                write(cache, slot, len(known), new, tables[slot])
                known += new
        for other, tokens in rows.items():
            assert read(cache, other, len(tokens)) == tokens
    assert len({cache.row(slot) for slot in rows}) == len(rows)


def test_a_long_row_gives_its_memory_back() -> None:
    """What a long sequence took is free after it, and what a short one took is kept for the next."""
    shape = CacheShape(planes=8, heads=4, size=64, slots=2, tokens=8192, block_tokens=16, keep_tokens=256)
    cache = SlotCache(shape)
    process = psutil.Process()
    before = process.memory_info().rss
    row = cache.row(0)
    cache.rows[:, row] = 1.0
    cache.advance(0, 0, 8192, [])
    size = cache.rows[:, row].nbytes
    assert process.memory_info().rss - before > size * 0.9
    cache.release(0)
    assert process.memory_info().rss - before < size * 0.2
    row = cache.row(1)
    assert not cache.rows[:, row, :, 100].any()
    cache.rows[:, row, :, :200] = 2.0
    cache.advance(1, 0, 200, [])
    cache.release(1)
    assert cache.rows[:, row, :, 199].all()


def test_the_pool_takes_its_memory_ahead_of_use() -> None:
    """Piece by piece all of it, whatever it holds already."""
    shape = CacheShape(planes=8, heads=4, size=64, slots=2, tokens=64, block_tokens=16, blocks=200)
    cache = SlotCache(shape)
    cache.rows[:, cache.row(0), :, :16] = np.arange(16)[:, None]
    cache.advance(0, 0, 16, [0])
    pool = shape.planes * shape.heads * shape.size * shape.block_tokens * 200 * 4
    process = psutil.Process()
    before = process.memory_info().rss
    pieces = 0
    while cache.prepare():
        pieces += 1
    grown = process.memory_info().rss - before
    assert pieces == -(-pool // (2 << 20))
    assert pool * 0.8 < grown < pool * 1.2
    cache.load(1, [0], 16)
    np.testing.assert_array_equal(cache.rows[:, cache.row(1), 0, :16, 0], np.tile(np.arange(16.0), (8, 1)))


def test_a_cache_without_a_pool_has_nothing_to_prepare() -> None:
    """The rows take memory as they are used."""
    assert not SlotCache(CacheShape(planes=2, heads=1, size=8, slots=2, tokens=8, block_tokens=4)).prepare()
