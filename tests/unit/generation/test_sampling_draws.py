"""The sampler as the engine uses it: streams of random numbers, batches, forks, masks, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.runtimes.generation import logprobs, seeds
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.sampling import Sampler, SamplerState, TokenSample

SIZE = 64
EOS = 2
# limits of chi-square that chance passes once in 10,000 times, by degrees of freedom
LIMITS = {5: 25.74, 7: 29.88, 63: 114.1}


def sampling(**parameters: Any) -> Sampling:
    return Sampling(max_tokens=1000, **parameters)


def logits(rows: int, seed: int = 0, size: int = SIZE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32) * 2


def run(sampler: Sampler, state: SamplerState, steps: NDArray[np.float32]) -> list[int]:
    return [sampler.sample(step[None].copy(), [state])[0].token for step in steps]


class Letters:
    """A grammar that allows one set of tokens after another, and nothing at its end."""

    def __init__(self, sets: Sequence[Sequence[int]]) -> None:
        self.sets = list(sets)

    @property
    def terminated(self) -> bool:
        return not self.sets

    def mask(self, row: NDArray[np.float32]) -> None:
        allowed = list(self.sets[0]) if self.sets else []
        kept = row[allowed]
        row.fill(-np.inf)
        row[allowed] = kept

    def accept(self, token: int) -> None:
        if self.sets:
            self.sets.pop(0)

    def copy(self) -> Letters:
        return Letters(self.sets)


def chi_square(tokens: Sequence[int], expected: NDArray[np.float64]) -> float:
    counts = np.bincount(tokens, minlength=expected.size)
    assert not counts[expected == 0].any()
    wanted = expected[expected > 0] * len(tokens)
    return float(((counts[expected > 0] - wanted) ** 2 / wanted).sum())


def softmax(row: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - row.max())
    return np.asarray(weights / weights.sum())


def test_positions_of_one_stream_draw_independently() -> None:
    row = logits(1, 3, 8)[0]
    sampler = Sampler(8, [EOS])
    tokens = run(sampler, sampler.begin(sampling(seed=5), [], 0, None), np.tile(row, (8000, 1)))
    expected = softmax(row)
    assert chi_square(tokens, expected) < LIMITS[7]
    # pairs of neighbours are independent too
    pairs = [8 * first + second for first, second in zip(tokens[::2], tokens[1::2], strict=True)]
    assert chi_square(pairs, np.outer(expected, expected).ravel()) < LIMITS[63]


@pytest.mark.parametrize("vary", ["seed", "sample"])
def test_streams_draw_independently(vary: str) -> None:
    row = logits(1, 4, 8)[0]
    sampler = Sampler(8, [EOS])
    tokens = []
    for index in range(8000):
        seed, sample = (index, 0) if vary == "seed" else (11, index)
        state = sampler.begin(sampling(seed=seed), [], sample, None)
        tokens.append(sampler.sample(row[None].copy(), [state])[0].token)
    assert chi_square(tokens, softmax(row)) < LIMITS[7]


def test_filters_and_temperature_shape_the_distribution() -> None:
    row = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -9.0], np.float32)
    sampler = Sampler(8, [EOS])
    state = sampler.begin(sampling(seed=1, temperature=2.0, top_k=6), [], 0, None)
    tokens = run(sampler, state, np.tile(row, (8000, 1)))
    expected = softmax(row / 2) * (row >= 1)
    assert chi_square(tokens, expected / expected.sum()) < LIMITS[5]


def test_uniform_numbers_are_fixed_by_seed_sample_and_position() -> None:
    assert seeds.uniform(1, 0, 0) == seeds.uniform(1, 0, 0)
    numbers = {seeds.uniform(*key) for key in [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (-1, 0, 0)]}
    assert len(numbers) == 5
    assert all(0 <= number < 1 for number in numbers)
    assert seeds.uniform(-1, 3, 7) == seeds.uniform(2**64 - 1, 3, 7)
    assert seeds.draw_seed() != seeds.draw_seed()


def test_without_a_seed_every_request_draws_its_own() -> None:
    steps = logits(20, 1)
    sampler = Sampler(SIZE, [EOS])
    first, second = (run(sampler, sampler.begin(sampling(), [], 0, None), steps) for _ in range(2))
    assert first != second


MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"temperature": 1.3, "top_k": 5, "seed": 2, "logprobs": 3},
    {"temperature": 0.0, "repetition_penalty": 1.4, "logprobs": 0},
    {"seed": 3, "frequency_penalty": 1.0, "presence_penalty": 0.5, "min_tokens": 4},
    {"seed": 4, "typical_p": 0.6, "watermark": True},
    {"seed": 5, "min_p": 0.2, "bad_words": ((1, 2), (3,)), "logit_bias": ((9, 4.0),)},
    {"seed": 6, "allowed_token_ids": (1, 2, 3, 4)},
    {"temperature": 0.0, "logprobs": 5},
]


@given(order=st.permutations(range(len(MIXED))), cuts=st.sets(st.integers(1, len(MIXED) - 1)))
@settings(max_examples=30, deadline=None)
def test_a_sequence_does_not_depend_on_its_batch(order: list[int], cuts: set[int]) -> None:
    steps = 12
    sampler = Sampler(SIZE, [EOS])
    rows = [logits(steps, 50 + index) for index in range(len(MIXED))]

    def begin(index: int) -> SamplerState:
        return sampler.begin(sampling(**MIXED[index]), [1, 5, index], 0, None)

    def alone(index: int) -> list[TokenSample]:
        state = begin(index)
        return [sampler.sample(rows[index][step][None].copy(), [state])[0] for step in range(steps)]

    expected = {index: alone(index) for index in order}
    states = {index: begin(index) for index in order}
    found: dict[int, list[TokenSample]] = {index: [] for index in order}
    bounds = [0, *sorted(cuts), len(order)]
    for step in range(steps):
        for first, last in pairwise(bounds):
            batch = order[first:last]
            stacked = np.stack([rows[index][step] for index in batch])
            for index, chosen in zip(batch, sampler.sample(stacked, [states[i] for i in batch]), strict=True):
                found[index].append(chosen)
    assert found == expected


def test_greedy_rows_take_the_first_maximum() -> None:
    sampler = Sampler(SIZE, [EOS])
    rows = logits(32)
    rows[4, [7, 9]] = 100
    states = [sampler.begin(sampling(temperature=0.0), [], 0, None) for _ in rows]
    chosen = sampler.sample(rows.copy(), states)
    assert [sample.token for sample in chosen] == rows.argmax(1).tolist()
    assert chosen[4].token == 7
    assert all(sample.logprob is None for sample in chosen)


def test_a_fork_has_the_history_and_a_stream_of_its_own() -> None:
    sampler = Sampler(SIZE, [EOS])
    parameters = sampling(seed=9, frequency_penalty=1.5, bad_words=((1, 2),), min_tokens=5)
    steps = logits(30, 8)
    parent = sampler.begin(parameters, [4], 0, None)
    twin = sampler.begin(parameters, [4], 0, None)
    run(sampler, parent, steps[:10])
    run(sampler, twin, steps[:10])
    fork = sampler.fork(parent, 1)
    assert fork.position == 10
    forked = run(sampler, fork, steps[10:])
    rest = run(sampler, parent, steps[10:])
    assert forked != rest
    assert rest == run(sampler, twin, steps[10:])
    # sample 1 of its own start, brought to the same place, draws the same
    other = sampler.begin(parameters, [4], 1, None)
    for token in run(sampler, sampler.begin(parameters, [4], 0, None), steps[:10]):
        sampler.append(other, token)
    assert forked == run(sampler, other, steps[10:])


def test_forks_of_one_prefill_are_as_good_as_samples_of_their_own() -> None:
    sampler = Sampler(SIZE, [EOS])
    parameters = sampling(seed=21, repetition_penalty=1.2)
    steps = logits(15, 2)
    first = sampler.begin(parameters, [7, 8], 0, None)
    forks = [first, *(sampler.fork(first, sample) for sample in (1, 2))]
    own = [sampler.begin(parameters, [7, 8], sample, None) for sample in range(3)]
    assert [run(sampler, s, steps) for s in forks] == [run(sampler, s, steps) for s in own]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_masks_and_ends(temperature: float) -> None:
    sampler = Sampler(SIZE, [EOS])
    state = sampler.begin(sampling(temperature=temperature, seed=1), [], 0, Letters([[5], [6, 7], [8]]))
    tokens = run(sampler, state, logits(3))
    assert tokens[0] == 5
    assert tokens[1] in {6, 7}
    assert tokens[2] == 8
    assert state.terminated
    # nothing is allowed any more
    assert run(sampler, state, logits(1)) == [EOS]


def test_forks_have_grammars_of_their_own() -> None:
    sampler = Sampler(SIZE, [EOS])
    state = sampler.begin(sampling(seed=1), [], 0, Letters([[5], [6], [8]]))
    run(sampler, state, logits(1))
    fork = sampler.fork(state, 1)
    assert run(sampler, fork, logits(2)) == [6, 8]
    assert not state.terminated
    assert run(sampler, state, logits(2)) == [6, 8]


def test_where_nothing_is_possible_the_end_is_chosen() -> None:
    rows = np.full((1, SIZE), -np.inf, np.float32)
    for ids, expected in (([EOS], EOS), ([], 0)):
        for temperature in (0.0, 1.0):
            sampler = Sampler(SIZE, ids)
            state = sampler.begin(
                sampling(temperature=temperature, allowed_token_ids=(SIZE + 1,), logprobs=2), [], 0, None
            )
            assert sampler.sample(rows.copy(), [state])[0].token == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_do_not_stop_the_engine(value: float) -> None:
    rows = logits(2)
    rows[0, 7] = value
    sampler = Sampler(SIZE, [EOS])
    states = [sampler.begin(sampling(seed=1, top_p=0.5, logprobs=3), [], 0, None) for _ in rows]
    assert sampler.sample(rows, states)[0].token == 7


def test_logprobs_are_the_models_own() -> None:
    torch = pytest.importorskip("torch")
    rows = logits(3, 5, 5000)
    reference = torch.log_softmax(torch.from_numpy(rows.copy()).double(), -1).numpy()
    sampler = Sampler(5000, [EOS])
    parameters = sampling(
        seed=3, temperature=0.3, logit_bias=((17, 50.0),), top_k=2, logprobs=4, repetition_penalty=2.0
    )
    states = [sampler.begin(parameters, [3], index, None) for index in range(3)]
    for row, chosen, expected in zip(rows, sampler.sample(rows.copy(), states), reference, strict=True):
        assert chosen.token == 17
        assert chosen.logprob is not None
        assert chosen.logprob.logprob == pytest.approx(expected[17], abs=1e-4)
        assert chosen.logprob.rank == 1 + np.count_nonzero(row > row[17])
        best = np.argsort(-row, kind="stable")[:4]
        assert [token for token, _ in chosen.logprob.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in chosen.logprob.top], expected[best], atol=1e-4)


def test_prompt_logprobs() -> None:
    rows = logits(6, 9)
    targets = [3, 1, 4, 1, 5, 9]
    before = rows.copy()
    found = Sampler(SIZE, [EOS]).prompt_logprobs(rows, targets, 2)
    np.testing.assert_array_equal(rows, before)
    for row, target, described in zip(rows, targets, found, strict=True):
        assert described.logprob == pytest.approx(float(np.log(softmax(row)[target])), abs=1e-5)
        assert described.rank == 1 + np.count_nonzero(row > row[target])
        assert len(described.top) == 2
    assert Sampler(SIZE, [EOS]).prompt_logprobs(rows, targets, 0)[0].top == ()


def test_ranks_of_equal_logits_are_equal() -> None:
    row = np.array([1, 5, 5, 7], np.float32)
    assert [logprobs.token_logprob(row, token, 0).rank for token in range(4)] == [4, 2, 2, 1]


@given(
    values=st.lists(st.integers(-5, 5), min_size=1, max_size=3000),
    k=st.integers(0, 3100),
    impossible=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_largest_is_a_stable_sort_cut_off(values: list[int], k: int, impossible: float) -> None:
    row = np.array(values, np.float32)
    row[np.random.default_rng(k).random(row.size) < impossible] = -np.inf
    order = np.argsort(-row, kind="stable")
    expected = [index for index in order[:k].tolist() if row[index] > -np.inf]
    assert logprobs.largest(row, k).tolist() == expected
    if 0 < k <= row.size:
        assert logprobs.kth_largest(row, k) == np.sort(row)[::-1][k - 1]
