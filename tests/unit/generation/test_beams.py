"""Beam search against transformers' generate, token for token and score for score."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtimes.generation.beams import Beams
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.sampling import Sampler

SIZE = 37
Rows = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The model is far too small to share."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def model(seed: int) -> Any:
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=1.0,
    )
    return hf.LlamaForCausalLM(config).train(mode=False)


def last_logits(seed: int, sequences: Sequence[Sequence[int]]) -> Rows:
    import torch

    with torch.no_grad():
        return np.asarray(model(seed)(torch.tensor(sequences)).logits[:, -1].float().numpy())


def search(beams: Beams, prompt: list[int], score: Callable[[list[list[int]]], Rows]) -> None:
    running = [[*prompt]]
    moves = beams.start(score(running)[0])
    while not beams.finished:
        running = [[*running[parent], token] for parent, token in moves]
        moves = beams.advance(score(running))
    assert moves == []


CASES = [
    {"width": 2, "n": 1, "eos": [5]},
    {"width": 4, "n": 4, "eos": [5]},
    {"width": 4, "n": 2, "eos": []},
    {"width": 3, "n": 3, "eos": [5, 9, 11], "length_penalty": 2.0},
    {"width": 3, "n": 3, "eos": [5, 9], "length_penalty": 0.0},
    {"width": 5, "n": 5, "eos": [1, 2, 3, 4], "length_penalty": -1.0},
    {"width": 8, "n": 3, "eos": list(range(10)), "max_tokens": 20},
    {"width": 1, "n": 1, "eos": [5]},
    {"width": 4, "n": 4, "eos": [5], "max_tokens": 1},
    {"width": 4, "n": 4, "eos": [5, 9], "repetition_penalty": 1.8},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_beams_equal_transformers(case: dict[str, Any], seed: int) -> None:
    import torch

    width, count, eos = case["width"], case["n"], case["eos"]
    penalty, repetition = case.get("length_penalty", 1.0), case.get("repetition_penalty", 1.0)
    tokens = case.get("max_tokens", 12)
    prompt = [1 + seed, 7, 3]
    if width == 1:
        expected, scores = greedy(seed, prompt, tokens, eos)
    else:
        out = model(seed).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=count,
            max_new_tokens=tokens,
            eos_token_id=eos or None,
            pad_token_id=0,
            length_penalty=penalty,
            repetition_penalty=repetition,
            early_stopping=False,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        expected = [cut(row[len(prompt) :], eos) for row in out.sequences.tolist()]
        scores = out.sequences_scores.tolist()
    sampler = Sampler(SIZE, eos)
    sampling = Sampling(max_tokens=tokens, repetition_penalty=repetition)

    def score(running: list[list[int]]) -> Rows:
        states = [sampler.begin(sampling, prompt, 0, None) for _ in running]
        for state, sequence in zip(states, running, strict=True):
            for token in sequence[len(prompt) :]:
                sampler.append(state, token)
        return sampler.log_probabilities(last_logits(seed, running), states)

    beams = Beams(width, count, penalty, tokens, eos)
    search(beams, prompt, score)
    assert [list(ids) for ids, _ in beams.best()] == expected
    np.testing.assert_allclose([s for _, s in beams.best()], scores, rtol=1e-4)


def cut(tokens: list[int], eos: list[int]) -> list[int]:
    """Take away what pads shorter hypotheses."""
    ends = [index for index, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens


def greedy(seed: int, prompt: list[int], tokens: int, eos: list[int]) -> tuple[list[list[int]], list[float]]:
    """A beam alone is greedy search that ends where its finished hypothesis is the better one."""
    sequence, total, best = [*prompt], 0.0, (-np.inf, [0])
    for length in range(1, tokens + 1):
        row = last_logits(seed, [sequence])[0].astype(np.float64)
        row -= np.log(np.exp(row - row.max()).sum()) + row.max()
        order = np.argsort(-row)
        if order[0] in eos or length == tokens:
            score = (total + row[order[0]]) / length
            best = max(best, (score, [*sequence[len(prompt) :], int(order[0])]))
        going = next(token for token in order if token not in eos)
        sequence.append(int(going))
        total += row[going]
        if best[0] >= total / length:
            break
    return [best[1]], [best[0]]


def rows_of(*rows: dict[int, float]) -> Rows:
    result = np.full((len(rows), 6), -np.inf, np.float32)
    for index, row in enumerate(rows):
        for token, value in row.items():
            result[index, token] = value
    return result


def test_impossible_tokens_leave_fewer_beams() -> None:
    beams = Beams(3, 3, 1.0, 5, [0])
    assert beams.start(rows_of({4: -0.5})[0]) == [(0, 4)]
    assert beams.advance(rows_of({1: -1.0, 2: -0.25})) == [(0, 2), (0, 1)]
    # the first beam may only end, the second goes on
    assert beams.advance(rows_of({0: -0.5}, {3: -0.5})) == [(1, 3)]
    assert beams.advance(rows_of({0: -0.5})) == []
    assert beams.finished
    assert [ids for ids, _ in beams.best()] == [(4, 2, 0), (4, 1, 3, 0)]
    assert [s for _, s in beams.best()] == pytest.approx([-1.25 / 3, -2.5 / 4])
    assert beams.rows() == [(0, 0, 0), (0, 0, 1, 0)]


def test_nothing_possible_ends_the_search() -> None:
    beams = Beams(2, 2, 1.0, 5, [0])
    assert beams.start(rows_of({})[0]) == []
    assert beams.finished
    assert beams.best() == []


def test_equal_scores_go_by_row_and_token() -> None:
    beams = Beams(2, 2, 1.0, 5, [])
    assert beams.start(np.zeros(6, np.float32)) == [(0, 0), (0, 1)]
    assert beams.advance(np.zeros((2, 6), np.float32)) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("penalty", [-1e9, 1e9])
def test_absurd_length_penalties_end_all_the_same(penalty: float) -> None:
    beams = Beams(2, 1, penalty, 4, [0])
    random = np.random.default_rng(0)
    moves = beams.start(-random.random(6).astype(np.float32))
    for _ in range(3):
        if not beams.finished:
            moves = beams.advance(-random.random((len(moves), 6)).astype(np.float32))
    assert beams.finished
    assert len(beams.best()) == 1
