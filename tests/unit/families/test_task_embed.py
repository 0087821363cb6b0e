"""Embedding: values, scaling, dimensions, prompts, and what is one request to the batcher."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from headrace.server.errors import (
    ExecutionFailedError,
    InputEmptyError,
    InvalidArgumentError,
    QueueFullError,
    TaskNotSupportedError,
)
from headrace.server.repository.model import Task
from headrace.server.tasks.embed import EmbedOptions, embed, unit_rows
from headrace.server.tasks.tokenization import Tokenizing

TEXTS = ["what is deep learning", "good", "the capital of france is paris"]


async def test_vectors_have_unit_length_and_the_order_of_the_inputs(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED)
    result = await embed(tokenizing, model, TEXTS, EmbedOptions())
    expected = np.stack([reference(text)["embedding"] for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result.vectors, expected, atol=1e-6)
    assert result.vectors.dtype == np.float32
    assert result.vectors.flags.c_contiguous
    assert result.token_counts == [len(reference(text)["ids"]) for text in TEXTS]
    assert result.timings.total_ns >= result.timings.tokenization_ns > 0
    assert result.timings.inference_ns == 20  # what the instance reported


async def test_the_parts_are_one_request(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("e", Task.EMBED)
    await embed(tokenizing, model, TEXTS, EmbedOptions())
    assert model.statistics.success.count == 1
    assert model.statistics.inference_count == 3


@pytest.mark.parametrize(("setting", "asked", "unit"), [
    (True, None, True), (True, False, False), (False, None, False), (False, True, True),
])  # fmt: skip
async def test_normalize(
    repository: Any, tokenizing: Tokenizing, reference: Any, setting: bool, asked: bool | None, unit: bool
) -> None:
    model = repository.text("e", Task.EMBED, normalize=setting)
    (vector,) = (await embed(tokenizing, model, ["good"], EmbedOptions(normalize=asked))).vectors
    raw = reference("good")["embedding"]
    np.testing.assert_allclose(vector, raw / np.linalg.norm(raw) if unit else raw, atol=1e-6)


async def test_dimensions_are_cut_before_scaling(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED)
    (vector,) = (await embed(tokenizing, model, ["good"], EmbedOptions(dimensions=5))).vectors
    raw = reference("good")["embedding"][:5]
    np.testing.assert_allclose(vector, raw / np.linalg.norm(raw), atol=1e-6)


@pytest.mark.parametrize(("dimensions", "message"), [
    (0, "^`dimensions` should be positive$"),
    (-3, "^`dimensions` should be positive$"),
    (17, "^`dimensions` should be smaller than the maximum embedding dimension. Given: 17, the maximum is"),
])  # fmt: skip
async def test_impossible_dimensions(
    repository: Any, tokenizing: Tokenizing, dimensions: int, message: str
) -> None:
    model = repository.text("e", Task.EMBED)
    with pytest.raises(InvalidArgumentError, match=message):
        await embed(tokenizing, model, ["good"], EmbedOptions(dimensions=dimensions))
    assert model.statistics.success.count == 0


async def test_prompts_are_put_before_the_text(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED, prompts={"query": "what is "}, default_prompt="query")
    vectors = (await embed(tokenizing, model, ["paris"], EmbedOptions(normalize=False))).vectors
    np.testing.assert_allclose(vectors[0], reference("what is paris")["embedding"], atol=1e-6)


def test_zero_vectors_stay_zero() -> None:
    vectors = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_array_equal(unit_rows(vectors), np.array([[0, 0], [0.6, 0.8]], np.float32))


async def test_large_requests_go_in_turns_and_fit_the_queue(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED, max_queue=10)
    texts = [TEXTS[index % 3] for index in range(35)]
    result = await embed(tokenizing, model, texts, EmbedOptions(normalize=False))
    expected = np.stack([reference(text)["embedding"] for text in texts])
    np.testing.assert_allclose(result.vectors, expected, atol=1e-6)
    assert model.statistics.success.count == 4
    assert result.timings.inference_ns == 20  # of each turn: times are means over the texts


async def test_many_vectors_are_finished_in_a_thread(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED, max_queue=4096)
    result = await embed(tokenizing, model, ["good"] * 1500, EmbedOptions())
    raw = reference("good")["embedding"]
    np.testing.assert_allclose(result.vectors, np.tile(raw / np.linalg.norm(raw), (1500, 1)), atol=1e-6)


async def test_a_bad_text_does_not_touch_other_requests(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    model = repository.text("e", Task.EMBED)
    good, bad = await asyncio.gather(
        embed(tokenizing, model, ["good"], EmbedOptions(normalize=False)),
        embed(tokenizing, model, ["good", ""], EmbedOptions()),
        return_exceptions=True,
    )
    assert isinstance(bad, InputEmptyError)
    assert not isinstance(good, BaseException)
    np.testing.assert_allclose(good.vectors[0], reference("good")["embedding"], atol=1e-6)


async def test_errors_of_model_and_queue_pass_through(repository: Any, tokenizing: Tokenizing) -> None:
    with pytest.raises(ExecutionFailedError, match="model says no"):
        await embed(tokenizing, repository.text("f", Task.EMBED, fail=True), ["good"], EmbedOptions())
    with pytest.raises(QueueFullError):
        await embed(tokenizing, repository.text("q", Task.EMBED, max_queue=0), ["good"], EmbedOptions())


async def test_no_texts(repository: Any, tokenizing: Tokenizing) -> None:
    with pytest.raises(InputEmptyError, match=r"^`inputs` cannot be empty$"):
        await embed(tokenizing, repository.text("e", Task.EMBED), [], EmbedOptions())


async def test_other_tasks_do_not_embed(repository: Any, tokenizing: Tokenizing) -> None:
    with pytest.raises(
        TaskNotSupportedError, match="model 'c' is not an embedding model, its task is classify"
    ):
        await embed(tokenizing, repository.text("c", Task.CLASSIFY), ["good"], EmbedOptions())
