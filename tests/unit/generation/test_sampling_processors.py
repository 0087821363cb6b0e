"""Edits of logits against transformers' logits processors and OpenAI's definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtimes.generation import watermark
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.processors import Processors
from headrace.runtimes.generation.sampling import Sampler

SIZE = 60
PROMPT = [3, 3, 7, 11, 59]
OUTPUT = [5, 7, 5, 20, 5, 40]
EOS = (2, 4)

Row = NDArray[np.float32]


def row(seed: int = 0) -> Row:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32) * 3


def edited(logits: Row, output: list[int] = OUTPUT, **parameters: Any) -> Row:
    processors = Processors(Sampling(max_tokens=100, **parameters), PROMPT, SIZE, EOS)
    for token in output:
        processors.append(token)
    result = logits.copy()
    processors.apply(result)
    return result


def processed(processor: Any, logits: Row, tokens: list[int]) -> Row:
    import torch

    return np.asarray(processor(torch.tensor([tokens]), torch.from_numpy(logits.copy())[None])[0].numpy())


@pytest.mark.parametrize("penalty", [0.3, 1.2, 2.0, 10.0])
def test_repetition_penalty(penalty: float) -> None:
    import transformers as hf

    oracle = hf.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processed(oracle, row(), PROMPT + OUTPUT)
    np.testing.assert_allclose(edited(row(), repetition_penalty=penalty), expected, rtol=1e-6)


def test_repetition_penalty_leaves_impossible_tokens_impossible() -> None:
    logits = np.full(SIZE, -np.inf, np.float32)
    assert np.all(edited(logits, repetition_penalty=1.5) == -np.inf)


def test_prompt_ids_without_a_logit_are_ignored() -> None:
    processors = Processors(Sampling(max_tokens=1, repetition_penalty=2.0), [1, SIZE, 10**6, -1], SIZE, EOS)
    processors.append(SIZE + 3)
    logits = np.ones(SIZE, np.float32)
    processors.apply(logits)
    assert np.flatnonzero(logits != 1).tolist() == [1]


def test_frequency_and_presence_penalties_count_the_output() -> None:
    expected = row()
    for token in set(OUTPUT):
        expected[token] -= 0.3 * OUTPUT.count(token) + 0.7
    result = edited(row(), frequency_penalty=0.3, presence_penalty=0.7)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_frequency_and_presence_penalties_count_the_prompt_where_asked() -> None:
    expected = row()
    for token in set(PROMPT + OUTPUT):
        expected[token] -= -0.5 * (PROMPT + OUTPUT).count(token) + 2
    result = edited(row(), frequency_penalty=-0.5, presence_penalty=2.0, penalize_prompt=True)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_counts_grow_with_the_output() -> None:
    random = np.random.default_rng(1)
    output = random.integers(0, SIZE, 500).tolist()
    expected = np.zeros(SIZE, np.float32) - np.bincount(output, minlength=SIZE)
    result = edited(np.zeros(SIZE, np.float32), output, frequency_penalty=1.0)
    np.testing.assert_array_equal(result, expected)


def test_logit_bias() -> None:
    result = edited(row(), logit_bias=((1, 100.0), (2, -100.0), (SIZE + 5, 3.0), (-1, 3.0)))
    expected = row()
    expected[1] += 100
    expected[2] -= 100
    np.testing.assert_array_equal(result, expected)


def test_allowed_token_ids() -> None:
    result = edited(row(), allowed_token_ids=(9, 8, 9, SIZE))
    assert np.flatnonzero(result > -np.inf).tolist() == [8, 9]
    assert result[9] == row()[9]


@pytest.mark.parametrize("output", [[], [5], [5, 6], [1, 5, 6], [6, 5], [5, 6, 5, 6, 5]])
def test_bad_words(output: list[int]) -> None:
    import transformers as hf

    words = [(10,), (5, 6), (5, 6, 7), (6, 7), (5, 5), (2,)]
    oracle = hf.NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=[2])
    # a token of the prompt that begins no bad word, for transformers looks at the prompt too
    expected = processed(oracle, row(), [50, *output])
    np.testing.assert_array_equal(edited(row(), output, bad_words=tuple(words)), expected)


def test_bad_words_begin_in_the_output() -> None:
    assert edited(row(), [], bad_words=((59, 7),))[7] == row()[7]


def test_min_tokens_masks_ends_and_stop_tokens() -> None:
    for length in range(5):
        result = edited(row(), OUTPUT[:length], min_tokens=3, stop_token_ids=(30, SIZE + 1))
        masked = np.flatnonzero(result == -np.inf).tolist()
        assert masked == ([2, 4, 30] if length < 3 else [])


def test_all_edits_have_their_order() -> None:
    """Bias before penalties: the penalty sees the biased logit."""
    result = edited(np.full(SIZE, 1.0, np.float32), logit_bias=((5, -3.0),), repetition_penalty=2.0)
    assert result[5] == -4
    assert result[7] == 0.5


def test_a_copy_goes_its_own_way() -> None:
    parameters: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "bad_words": ((1, 2), (1, 2, 3)),
        "min_tokens": 3,
    }
    first = Processors(Sampling(max_tokens=9, **parameters), PROMPT, SIZE, EOS)
    first.append(1)
    second = first.copy()
    for token in (2, 30, 31):
        second.append(token)
    result = row()
    first.apply(result)
    np.testing.assert_array_equal(result, edited(row(), [1], **parameters))
    result = row()
    second.apply(result)
    np.testing.assert_array_equal(result, edited(row(), [1, 2, 30, 31], **parameters))


def generate(*, marked: bool, seed: int, tokens: int = 200) -> list[int]:
    vocabulary = 2000
    sampler = Sampler(vocabulary, [0])
    sampling = Sampling(max_tokens=tokens, seed=seed, watermark=marked)
    state = sampler.begin(sampling, [17], 0, None)
    logits = np.random.default_rng(seed).standard_normal((tokens, 1, vocabulary)).astype(np.float32)
    return [sampler.sample(step, [state])[0].token for step in logits]


def test_watermark_is_detected_and_its_absence_too() -> None:
    assert watermark.detect(generate(marked=True, seed=1)) > 6
    assert abs(watermark.detect(generate(marked=False, seed=1))) < 4
    assert watermark.detect([]) == watermark.detect([4]) == 0


def test_half_of_the_vocabulary_is_green_after_every_token() -> None:
    ids = np.arange(50_000, dtype=np.uint32)
    lists = [watermark.green(previous, ids) for previous in (0, 1, 2, 49_999)]
    for green in lists:
        assert abs(green.mean() - watermark.GAMMA) < 0.01
    # independent of each other: two lists agree on half of the tokens
    assert abs((lists[0] == lists[1]).mean() - 0.5) < 0.02
    assert abs((lists[1] == lists[2]).mean() - 0.5) < 0.02
    # and of neighbouring ids
    assert abs((lists[0][1:] == lists[0][:-1]).mean() - 0.5) < 0.02
