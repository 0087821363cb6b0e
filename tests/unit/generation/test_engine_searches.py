"""Beam searches in the engine: with masks that leave few ways to go on, and beside one another."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from generation_engines import EOS, VOCABULARY, Bench, expected, make_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.runtimes.generation.base import Together
from headrace.runtimes.generation.parameters import Sampling


def check(bench: Bench, prompts: list[list[int]], samplings: list[Sampling]) -> None:
    for prompt, sampling in zip(prompts, samplings, strict=True):
        bench.add(prompt, sampling)
    bench.run()
    bench.assert_empty()
    for request, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        wanted = expected(prompt, sampling, bench.spec)
        assert bench.results[request].outcome() == wanted.outcome(), f"request {request}"


@pytest.mark.parametrize("allowed", [1, 2, 3], ids=lambda count: f"{count} allowed")
@pytest.mark.parametrize("width", [2, 4, 7])
def test_fewer_tokens_than_beams(width: int, allowed: int) -> None:
    sampling = Sampling(
        max_tokens=6,
        n=width,
        best_of=width,
        beam=True,
        ignore_eos=True,
        allowed_token_ids=tuple(range(10, 10 + allowed)),
        logprobs=1,
    )
    prompts = [random.Random(seed).choices(range(2, VOCABULARY), k=5) for seed in range(10)]
    check(Bench(make_spec(max_sequences=8)), prompts, [sampling] * len(prompts))


@st.composite
def searches(draw: st.DrawFn) -> Sampling:
    width = draw(st.integers(1, 6))
    tokens = st.integers(EOS, 12)
    return Sampling(
        max_tokens=draw(st.integers(1, 9)),
        n=draw(st.integers(1, width)),
        best_of=width,
        beam=True,
        ignore_eos=draw(st.booleans()),
        allowed_token_ids=tuple(sorted(draw(st.sets(tokens, min_size=1, max_size=5)))),
        bad_words=tuple(draw(st.lists(st.tuples(tokens, tokens), max_size=6))),
        stop_token_ids=draw(st.sampled_from([(), (5,)])),
        min_tokens=draw(st.integers(0, 1)),
        logprobs=draw(st.sampled_from([None, 1])),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    paged=st.booleans(),
    together=st.sampled_from(get_args(Together)),
    blocks=st.integers(27, 60),
    asked=st.lists(
        st.tuples(st.lists(st.integers(2, 9), min_size=1, max_size=9), searches()), min_size=1, max_size=5
    ),
)
def test_any_masks(
    paged: bool, together: Together, blocks: int, asked: list[tuple[list[int], Sampling]]
) -> None:
    spec = make_spec(max_tokens=24, max_sequences=6, kv_tokens=4 * blocks)
    bench = Bench(spec, paged=paged, together=together)
    check(bench, [prompt for prompt, _ in asked], [sampling for _, sampling in asked])


def test_a_search_that_another_pushed_out_before_its_first_step_begins_later() -> None:
    spec = make_spec(max_tokens=24, max_sequences=8, kv_tokens=24)
    first = Sampling(max_tokens=3, n=4, best_of=4, beam=True, ignore_eos=True)
    second = Sampling(max_tokens=3, n=2, best_of=2, beam=True, ignore_eos=True)
    bench = Bench(spec)
    check(bench, [[4, 5, 6, 7, 8], [9, 5, 6, 7, 8]], [first, second])
    assert bench.engine.stats.preemptions, "the case must show preemptions"
