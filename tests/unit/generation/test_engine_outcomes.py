"""Whatever the engine does to be fast, an outcome is that of computing the request alone, token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from generation_engines import VOCABULARY, Bench, expected, make_spec

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.parameters import Sampling

GREEDY = Sampling(max_tokens=24, temperature=0, logprobs=2)
RANDOM = Sampling(max_tokens=24, temperature=0.8, top_k=12, seed=7, logprobs=2)
PENALISED = Sampling(
    max_tokens=30, temperature=0.9, seed=3, repetition_penalty=1.3, frequency_penalty=0.2, logprobs=0
)
MANY = Sampling(max_tokens=12, temperature=1.0, seed=11, n=3, best_of=3, logprobs=1)
BEAMS = Sampling(max_tokens=10, n=2, best_of=3, beam=True, logprobs=1)
SCORED = Sampling(max_tokens=6, temperature=0, logprobs=1, prompt_logprobs=2)
ENDLESS = Sampling(max_tokens=20, temperature=0, ignore_eos=True, stop_token_ids=(5, 9), min_tokens=4)
KINDS = {
    "greedy": GREEDY,
    "random": RANDOM,
    "penalised": PENALISED,
    "n": MANY,
    "beams": BEAMS,
    "scored": SCORED,
    "stops": ENDLESS,
}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, VOCABULARY), k=length)


def check(bench: Bench, prompts: list[list[int]], samplings: list[Sampling]) -> None:
    for request, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        wanted = expected(prompt, sampling, bench.spec)
        assert bench.results[request].outcome() == wanted.outcome(), f"request {request}"
    bench.assert_empty()


@pytest.mark.parametrize("paged", [False, True], ids=["slots", "paged"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_request(kind: str, paged: bool) -> None:
    for length in (1, 3, 4, 17, 40):
        bench = Bench(make_spec(), paged=paged)
        bench.one(prompt_of(length), KINDS[kind])
        check(bench, [prompt_of(length)], [KINDS[kind]])


SPECS = {
    "plain": make_spec(),
    "one token a chunk": make_spec(step_tokens=1, prefill_tokens=1, block_tokens=1),
    "five tokens a chunk": make_spec(step_tokens=8, prefill_tokens=5),
    "one slot": make_spec(max_sequences=3),
    "scarce blocks": make_spec(max_sequences=6, kv_tokens=132),
    "scarce large blocks": make_spec(max_sequences=8, kv_tokens=176, block_tokens=16),
    "no cache": make_spec(prefix_cache=False),
    "drafts": make_spec(draft_tokens=4),
    "drafts and scarce blocks": make_spec(draft_tokens=3, max_sequences=6, kv_tokens=132),
    "wide": make_spec(max_sequences=32, kv_tokens=4096, step_tokens=64),
}


@pytest.mark.parametrize("paged", [False, True], ids=["slots", "paged"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_full_batch_of_all_kinds(spec: GenerationSpec, paged: bool) -> None:
    bench = Bench(spec, paged=paged)
    samplings = [*KINDS.values()] * 2
    prompts = [prompt_of(3 + 5 * place, place) for place in range(len(samplings))]
    for prompt, sampling in zip(prompts, samplings, strict=True):
        bench.add(prompt, sampling)
    bench.run()
    check(bench, prompts, samplings)
    if "scarce" in " ".join(name for name, value in SPECS.items() if value is spec):
        assert bench.engine.stats.preemptions, "the case must show preemptions"


@pytest.mark.parametrize("paged", [False, True], ids=["slots", "paged"])
def test_requests_that_arrive_at_different_steps(paged: bool) -> None:
    bench = Bench(make_spec(), paged=paged)
    samplings = [*KINDS.values()] * 2
    prompts = [prompt_of(30 - place, place) for place in range(len(samplings))]
    for prompt, sampling in zip(prompts, samplings, strict=True):
        bench.add(prompt, sampling)
        bench.step()
        bench.step()
    bench.run()
    check(bench, prompts, samplings)


@pytest.mark.parametrize("paged", [False, True], ids=["slots", "paged"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_prefix_changes_nothing(kind: str, paged: bool) -> None:
    bench = Bench(make_spec(), paged=paged)
    prompts = [prompt_of(33), prompt_of(33), [*prompt_of(33)[:20], 7, 8, 9], prompt_of(32)]
    for prompt in prompts:
        bench.one(prompt, KINDS[kind])
    check(bench, prompts, [KINDS[kind]] * 4)
    cached = [bench.results[request].started[0].cached_tokens for request in range(4)]
    assert cached == ([0, 0, 0, 0] if kind == "scored" else [0, 32, 20, 28])


def test_cached_prefixes_survive_as_long_as_their_blocks_are_not_needed() -> None:
    bench = Bench(make_spec(kv_tokens=96, max_tokens=64))
    sampling = msgspec.structs.replace(GREEDY, max_tokens=1)
    bench.one(prompt_of(32, 1), sampling)
    bench.one(prompt_of(32, 2), sampling)
    assert bench.one(prompt_of(32, 1), sampling).started[0].cached_tokens == 28
    bench.one(prompt_of(60, 3), sampling)  # pushes out what was used longest ago, from its end
    assert bench.one(prompt_of(32, 1), sampling).started[0].cached_tokens == 28
    assert 0 < bench.one(prompt_of(32, 2), sampling).started[0].cached_tokens < 28
    bench.assert_empty()


def test_prefixes_are_not_shared_across_salts_adapters_and_those_who_want_none() -> None:
    bench = Bench(make_spec())
    one = Sampling(max_tokens=1, temperature=0)
    variants = [
        one,
        Sampling(max_tokens=1, temperature=0, cache_salt="a"),
        Sampling(max_tokens=1, temperature=0, adapter="a"),
        Sampling(max_tokens=1, temperature=0, prefix_cache=False),
    ]
    for variant in variants:
        assert bench.one(prompt_of(20), variant).started[0].cached_tokens == 0
    again = [bench.one(prompt_of(20), variant).started[0].cached_tokens for variant in variants]
    assert again == [16, 16, 16, 0]


def test_preemption_changes_nothing() -> None:
    prompts = [prompt_of(20, place) for place in range(4)]
    samplings = [GREEDY, RANDOM, PENALISED, RANDOM]
    for blocks, preempts in ((512, False), (112, True)):
        bench = Bench(replace(make_spec(), kv_tokens=blocks))
        for prompt, sampling in zip(prompts, samplings, strict=True):
            bench.add(prompt, sampling)
        bench.run()
        assert bool(bench.engine.stats.preemptions) is preempts
        check(bench, prompts, samplings)


def test_drafts_are_accepted_and_save_steps() -> None:
    prompt = prompt_of(6, 4) * 4
    sampling = Sampling(max_tokens=60, temperature=0, ignore_eos=True, logprobs=1)
    steps = {}
    for draft_tokens in (0, 4):
        bench = Bench(make_spec(draft_tokens=draft_tokens))
        bench.one(prompt, sampling)
        check(bench, [prompt], [sampling])
        steps[draft_tokens] = bench.engine.stats.steps
        drafted = sum(len(chunk.tokens) > 1 for step in bench.decoder.steps[2:] for chunk in step)
        assert bool(drafted) is bool(draft_tokens)
    assert steps[4] < steps[0]
