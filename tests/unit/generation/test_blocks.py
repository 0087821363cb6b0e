"""The block manager, by itself and against a model that looks at everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.runtimes.generation.blocks import BlockManager, next_key, root_key

ROOT = root_key("", "")


def chain(tokens: list[int], size: int = 2) -> list[bytes]:
    keys = []
    parent = ROOT
    for start in range(0, len(tokens) - size + 1, size):
        parent = next_key(parent, tokens[start : start + size])
        keys.append(parent)
    return keys


def test_a_key_depends_on_everything_before_it() -> None:
    assert chain([1, 2, 3, 4])[1] == chain([1, 2, 3, 4, 5])[1]
    assert chain([1, 2, 3, 4])[1] != chain([9, 2, 3, 4])[1]
    roots = {root_key("", ""), root_key("a", ""), root_key("", "a"), root_key("a", "b"), root_key("ab", "")}
    assert len(roots) == 5
    assert next_key(root_key("a", ""), [1]) != next_key(root_key("", "a"), [1])


def test_registered_blocks_are_found_until_they_are_handed_out_again() -> None:
    manager = BlockManager(4)
    keys = chain([1, 2, 3, 4, 5, 6])
    blocks = manager.allocate(3)
    assert manager.lookup(keys) == []
    for block, key in zip(blocks, keys, strict=True):
        manager.register(block, key)
    manager.release(blocks)
    assert manager.free == 4
    assert manager.lookup(keys) == blocks
    assert manager.lookup([keys[0], ROOT, keys[2]]) == blocks[:1]
    # the empty block first, then the end of the prefix
    assert set(manager.allocate(2)) == {3, blocks[2]}
    assert manager.lookup(keys) == blocks[:2]


def test_held_blocks_are_shared_and_stay() -> None:
    manager = BlockManager(3)
    (key,) = chain([1, 2])
    (block,) = manager.allocate(1)
    manager.register(block, key)
    manager.hold([block])
    manager.release([block])
    assert manager.idle([block]) == 0
    assert manager.free == 2
    manager.release([block])
    assert manager.idle([block]) == 1
    manager.hold([block])
    assert manager.free == 2
    assert block not in manager.allocate(2)


def test_a_second_block_with_the_same_content_leaves_no_trace() -> None:
    manager = BlockManager(2)
    (key,) = chain([1, 2])
    first, second = manager.allocate(2)
    manager.register(first, key)
    manager.register(second, key)
    manager.release([second])
    assert manager.lookup([key]) == [first]
    assert manager.allocate(1) == [second]


def test_the_prefix_used_longest_ago_goes_first() -> None:
    manager = BlockManager(3)
    keys = [next_key(ROOT, [number]) for number in range(3)]
    for key in keys:
        (block,) = manager.allocate(1)
        manager.register(block, key)
        manager.release([block])
    found = manager.lookup([keys[0]])
    manager.hold(found)
    manager.release(found)
    manager.allocate(1)
    assert [bool(manager.lookup([key])) for key in keys] == [True, False, True]


class Blocks(RuleBasedStateMachine):
    """Sequences that share prefixes, grow and end in any order."""

    TOTAL = 9

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(self.TOTAL)
        self.tables: list[tuple[list[int], list[bytes]]] = []
        self.content: dict[int, bytes] = {}

    @initialize()
    def start(self) -> None:
        assert self.manager.free == self.TOTAL

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10))
    def begin(self, tokens: list[int]) -> None:
        keys = chain(tokens)
        found = self.manager.lookup(keys)
        assert [self.content[block] for block in found] == keys[: len(found)]
        wanted = -(-len(tokens) // 2) - len(found)
        if self.manager.free - self.manager.idle(found) < wanted:
            return
        self.manager.hold(found)
        blocks = found + self.manager.allocate(wanted)
        assert len(set(blocks)) == len(blocks)
        # whatever the new blocks held is overwritten
        for block, key in zip(blocks, [*keys, b""], strict=False):
            self.content[block] = key
        self.tables.append((blocks, keys))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        blocks, keys = data.draw(st.sampled_from(self.tables))
        for block, key in zip(blocks, keys, strict=False):
            self.manager.register(block, key)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.tables) - 1))
        self.manager.release(self.tables.pop(place)[0])

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        holders = Counter(block for blocks, _ in self.tables for block in blocks)
        manager = self.manager
        assert [holders[block] for block in range(self.TOTAL)] == manager._holders
        assert manager.free == self.TOTAL - len(holders)
        assert sorted([*manager._empty, *manager._kept, *holders]) == list(range(self.TOTAL))
        assert all(manager._keys[block] is None for block in manager._empty)
        assert {key: block for block, key in enumerate(manager._keys) if key} == manager._cached


Blocks.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_blocks_are_never_lost_nor_shared_by_mistake = Blocks.TestCase
