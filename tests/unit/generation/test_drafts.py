from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.generation.drafts import PromptLookup


def test_what_followed_before_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert PromptLookup(3).draft(tokens, 8) == [4, 5, 6]
    assert PromptLookup(3).draft(tokens, 2) == [4, 5]


def test_nothing_is_guessed_without_a_repetition() -> None:
    assert PromptLookup(3).draft([1, 2, 3, 4, 5], 8) == []
    assert PromptLookup(3).draft([1], 8) == []


def test_a_long_run_counts_more_than_a_later_short_one() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert PromptLookup(1).draft(tokens, 1) == [4]


def test_a_repetition_goes_on_beyond_the_end() -> None:
    assert PromptLookup(5).draft([7, 8, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]


def test_wrong_guesses_get_shorter_and_right_ones_longer() -> None:
    lookup = PromptLookup(4)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    lookup.learn(4, 0)
    assert len(lookup.draft(tokens, 8)) == 2
    lookup.learn(2, 0)
    lookup.learn(1, 0)
    assert len(lookup.draft(tokens, 8)) == 1
    lookup.learn(1, 1)
    assert len(lookup.draft(tokens, 8)) == 2
    lookup.learn(2, 1)
    assert len(lookup.draft(tokens, 8)) == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.lists(st.integers(1, 6)))
def test_an_index_kept_while_the_sequence_grows_is_that_of_the_whole(
    tokens: list[int], strides: list[int]
) -> None:
    growing = PromptLookup(4)
    end = 0
    for stride in strides:
        end = min(len(tokens), end + stride)
        growing.draft(tokens[:end], 4)
    guess = growing.draft(tokens, 4)
    assert guess == PromptLookup(4).draft(tokens, 4)
    assert len(guess) in {0, 4}
