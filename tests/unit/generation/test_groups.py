"""Which chunks of a step share a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.generation.base import Chunk
from headrace.runtimes.generation.groups import GROUP_TOKENS, PADDING, groups


def chunk(tokens: int, start: int = 0, *, fresh: bool = True) -> Chunk:
    return Chunk(0, [1] * tokens, start, [], 1, fresh)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], []),
        ([chunk(1, 9, fresh=False), chunk(1, 4, fresh=False)], [[0, 1]]),
        # single tokens first, whatever else there is
        ([chunk(20, 16, fresh=False), chunk(1, 9, fresh=False), chunk(20)], [[1], [0], [2]]),
        ([chunk(128), chunk(128), chunk(128)], [[0, 1], [2]]),
        ([chunk(32)] * 9, [[0, 1, 2, 3, 4, 5, 6, 7], [8]]),
        # unlike lengths would be padded
        ([chunk(60), chunk(9), chunk(64), chunk(62)], [[0, 3, 2], [1]]),
        # what was found in the cache is a past, and so is what was computed before
        ([chunk(32), chunk(32, 16), chunk(32, 16, fresh=False), chunk(32)], [[0, 3], [1], [2]]),
        ([chunk(300), chunk(300)], [[0], [1]]),
    ],
)
def test_groups(chunks: list[Chunk], expected: list[list[int]]) -> None:
    assert groups(chunks, "alike") == expected


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], []),
        ([chunk(1, 9, fresh=False), chunk(1, 4, fresh=False)], [[0, 1]]),
        ([chunk(20), chunk(20)], [[0, 1]]),
        # the first of what would be a run of its own comes with the single tokens
        ([chunk(20, 16, fresh=False), chunk(1, 9, fresh=False), chunk(20)], [[0, 1], [2]]),
        (
            [chunk(9), chunk(1, 9, fresh=False), chunk(64), chunk(62), chunk(1, 3, fresh=False)],
            [[0, 1, 4], [2, 3]],
        ),
        ([chunk(1, 9, fresh=False), chunk(64), chunk(62), chunk(9)], [[0, 1, 2], [3]]),
    ],
)
def test_single_tokens_go_with_a_prompt_where_they_may(
    chunks: list[Chunk], expected: list[list[int]]
) -> None:
    assert [sorted(group) for group in groups(chunks, "mixed")] == expected


def test_all_may_be_one_group() -> None:
    assert groups([chunk(20), chunk(1, 9, fresh=False), chunk(300)], "all") == [[0, 1, 2]]
    assert groups([], "all") == []


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=20))
def test_every_chunk_is_in_one_group_within_the_limits(kinds: list[tuple[int, bool]]) -> None:
    chunks = [chunk(length, 0 if fresh else 5, fresh=fresh) for length, fresh in kinds]
    divided = groups(chunks, "alike")
    assert sorted(index for group in divided for index in group) == list(range(len(chunks)))
    for group in divided:
        lengths = [len(chunks[index].tokens) for index in group]
        if len(group) > 1 and max(lengths) > 1:
            assert all(chunks[index].fresh for index in group)
            assert max(lengths) * len(group) <= min(GROUP_TOKENS, sum(lengths) * (1 + 1 / PADDING))
