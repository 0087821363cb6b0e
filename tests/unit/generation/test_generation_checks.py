"""What the generate task refuses, and what it makes fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scripted_generation import ScriptedGenerator, options, plain_tokenizer, scripted_model

from headrace.server.errors import InputEmptyError, InputTooLongError, InvalidArgumentError
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.text_stream import TextStream, complete


async def started(generating: Generating, generator: ScriptedGenerator, **values: Any) -> TextStream:
    return await generating.start(
        scripted_model(generator, plain_tokenizer()), Prompt("hello"), options(**values)
    )


async def test_the_context_limits_the_output(generating: Generating) -> None:
    generator = ScriptedGenerator([5])
    model = scripted_model(generator, plain_tokenizer(), max_tokens=10)
    prompt = Prompt(token_ids=(1, 2, 3, 4))
    await complete(await generating.start(model, prompt, options(max_tokens=100, min_tokens=50)))
    sent = generator.tickets[0].sampling
    assert (sent.max_tokens, sent.min_tokens) == (6, 6)
    with pytest.raises(InputTooLongError, match="maximum context length is 10") as failure:
        await generating.start(model, prompt, options(max_tokens=100), cap=False)
    assert failure.value.metadata["requested"] == "100"
    for count in (10, 11):
        with pytest.raises(InputTooLongError) as failure:
            await generating.start(model, Prompt(token_ids=(1,) * count), options())
        assert failure.value.metadata["tokens"] == str(count)
        assert failure.value.metadata["max_tokens"] == "10"
    await complete(await generating.start(model, Prompt(token_ids=(1,) * 10), options(max_tokens=0)))


async def test_prompts_are_truncated_when_asked(generating: Generating) -> None:
    generator = ScriptedGenerator([5])
    model = scripted_model(generator, plain_tokenizer())
    prompt = Prompt(token_ids=(1, 2, 3, 4), truncate=3)
    for given, kept in [(prompt, [2, 3, 4]), (replace(prompt, keep_end=False), [1, 2, 3])]:
        await complete(await generating.start(model, given, options()))
        assert generator.tickets[-1].prompt == kept


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (Prompt(""), InputEmptyError),
        (Prompt(token_ids=()), InputEmptyError),
        (Prompt(token_ids=(1, 512)), InvalidArgumentError),
        (Prompt(token_ids=(-1,)), InvalidArgumentError),
        (Prompt("x", truncate=0), InvalidArgumentError),
        (Prompt("\ud800"), InvalidArgumentError),
        (Prompt("x" * (256 * 250 + 1)), InputTooLongError),
    ],
)
async def test_impossible_prompts(generating: Generating, prompt: Prompt, error: type[Exception]) -> None:
    with pytest.raises(error):
        await generating.start(scripted_model(ScriptedGenerator(), plain_tokenizer()), prompt, options())


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"max_tokens": -1}),
    ("min_tokens", {"max_tokens": 4, "min_tokens": 5}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": float("nan")}),
    ("top_k", {"top_k": -2}),
    ("top_p", {"top_p": 0.0}),
    ("top_p", {"top_p": 1.1}),
    ("min_p", {"min_p": -0.1}),
    ("typical_p", {"typical_p": 0.0}),
    ("repetition_penalty", {"repetition_penalty": 0.0}),
    ("repetition_penalty", {"repetition_penalty": float("inf")}),
    ("frequency_penalty", {"frequency_penalty": 2.1}),
    ("presence_penalty", {"presence_penalty": -2.1}),
    ("length_penalty", {"length_penalty": float("nan")}),
    ("seed", {"seed": 2**64}),
    ("n", {"n": 0}),
    ("n", {"n": 129, "best_of": 129}),
    ("best_of", {"n": 2, "best_of": 1}),
    ("logprobs", {"logprobs": 21}),
    ("prompt_logprobs", {"prompt_logprobs": -1}),
    ("logit_bias", {"logit_bias": ((512, 1.0),)}),
    ("logit_bias", {"logit_bias": ((1, float("inf")),)}),
    ("allowed_token_ids", {"allowed_token_ids": (-1,)}),
    ("stop_token_ids", {"stop_token_ids": (512,)}),
    ("bad_words", {"bad_words": ((),)}),
    ("bad_words", {"bad_words": ((512,),)}),
    ("stop", {"stop": ("",)}),
    ("stop", {"stop": ("x",) * 65}),
    ("stop", {"stop": ("x" * 4097,)}),
    ("stop", {"stop": ("x" * 2048, "y" * 2049)}),
    ("cache_salt", {"cache_salt": "x" * 513}),
    ("adapter", {"adapter": "mine"}),
    ("request_id", {"request_id": "x" * 513}),
    ("priority", {"priority": 2**63}),
]


@pytest.mark.parametrize(
    ("field", "values"), WRONG, ids=[f"{field}-{number}" for number, (field, _) in enumerate(WRONG)]
)
async def test_values_out_of_range_are_refused(
    generating: Generating, field: str, values: dict[str, Any]
) -> None:
    generator = ScriptedGenerator()
    with pytest.raises(InvalidArgumentError) as failure:
        await started(generating, generator, **values)
    assert failure.value.metadata["field"] == field
    assert generator.tickets == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1.0}, "expected at least 0"),
        ({"temperature": 2e6}, "expected at most 1000000"),
        ({"min_p": 2.0}, "expected 0 to 1"),
        ({"top_k": 2**31}, "expected at most 2147483647"),
        ({"repetition_penalty": 1e7}, "expected greater than 0, at most 1000000"),
        ({"priority": 2**63}, "expected at most 9223372036854775807"),
        ({"priority": -(2**63) - 1}, "expected at least -9223372036854775808"),
    ],
)
async def test_refusals_say_which_bound_was_broken(
    generating: Generating, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        await started(generating, ScriptedGenerator(), **values)


@pytest.mark.parametrize(
    "values",
    [
        {"top_p": 1.0, "min_p": 1.0, "seed": 2**64 - 1, "logprobs": 20, "frequency_penalty": -2.0},
        {"stop": ("x" * 2048, "y" * 2048)},
        {"seed": -(2**63), "n": 128, "best_of": 128, "logit_bias": ((511, -100.0),), "top_k": 0},
        {"priority": 2**63 - 1, "max_tokens": 2**64},
        {"priority": -(2**63)},
    ],
)
async def test_values_at_the_ends_of_their_ranges_pass(
    generating: Generating, values: dict[str, Any]
) -> None:
    await complete(await started(generating, ScriptedGenerator([5]), **values))
