"""Random requests, arrivals and aborts on random engines: outcomes are right, all is given back."""

from __future__ import annotations

from typing import get_args

from generation_engines import Bench, expected, make_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.runtimes.generation.base import DeviceSampling, GenerationSpec, Together
from headrace.runtimes.generation.parameters import Sampling

# few different tokens and prompts that share beginnings: the prefix cache is used
PROMPTS = st.builds(
    lambda start, rest: [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][:start] + rest,
    st.integers(0, 12),
    st.lists(st.integers(2, 5), min_size=1, max_size=16),
)


Arrival = tuple[list[int], Sampling, int, int | None]


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    beam = draw(st.integers(0, 5)) == 0
    n = draw(st.integers(1, 3))
    best_of = n + draw(st.integers(0, 1))
    return Sampling(
        max_tokens=draw(st.integers(1, 14)),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_k=draw(st.sampled_from([0, 3])),
        seed=draw(st.integers(0, 3)),
        n=n,
        best_of=best_of if beam else n,
        beam=beam,
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        logprobs=draw(st.sampled_from([None, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, 1])),
        stop_token_ids=draw(st.sampled_from([(), (7,)])),
        ignore_eos=draw(st.booleans()),
        priority=draw(st.integers(-1, 1)),
        cache_salt=draw(st.sampled_from(["", "", "x"])),
        prefix_cache=draw(st.sampled_from([True, True, False])),
    )


@st.composite
def simple_samplings(draw: st.DrawFn) -> Sampling:
    """Mostly such as a decoder can draw for."""
    if draw(st.integers(0, 7)) == 0:
        return draw(samplings())
    return Sampling(
        max_tokens=draw(st.integers(1, 20)),
        min_tokens=draw(st.sampled_from([0, 0, 0, 2])),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        seed=draw(st.integers(0, 3)),
        n=(n := draw(st.sampled_from([1, 1, 1, 2]))),
        best_of=n,
        stop_token_ids=draw(st.sampled_from([(), (7,)])),
        ignore_eos=draw(st.booleans()),
        priority=draw(st.integers(-1, 1)),
    )


@st.composite
def specs(draw: st.DrawFn) -> GenerationSpec:
    return make_spec(
        max_tokens=40,
        max_sequences=draw(st.integers(4, 8)),
        block_tokens=draw(st.sampled_from([1, 2, 4, 8])),
        # from just enough for the widest search to plenty
        kv_tokens=draw(st.sampled_from([176, 184, 224, 1024])),
        step_tokens=draw(st.integers(1, 16)),
        prefill_tokens=draw(st.integers(1, 32)),
        prefix_cache=draw(st.booleans()),
        draft_tokens=draw(st.integers(0, 3)),
    )


def arrivals_of(samplings: st.SearchStrategy[Sampling]) -> st.SearchStrategy[list[Arrival]]:
    arrival = st.tuples(PROMPTS, samplings, st.integers(0, 6), st.none() | st.integers(0, 9))
    return st.lists(arrival, min_size=1, max_size=9)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=specs(),
    paged=st.booleans(),
    together=st.sampled_from(get_args(Together)),
    arrivals=arrivals_of(samplings()),
)
def test_any_mix(spec: GenerationSpec, paged: bool, together: Together, arrivals: list[Arrival]) -> None:
    mixed(Bench(spec, paged=paged, together=together), arrivals)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=specs(),
    paged=st.booleans(),
    sampling=st.sampled_from(["device", "ahead", "ahead", "ahead"]),
    lazy=st.booleans(),
    arrivals=arrivals_of(simple_samplings()),
)
def test_any_mix_drawn_by_the_decoder(
    spec: GenerationSpec, paged: bool, sampling: DeviceSampling, lazy: bool, arrivals: list[Arrival]
) -> None:
    mixed(Bench(spec, paged=paged, sampling=sampling, lazy=lazy), arrivals)


def mixed(bench: Bench, arrivals: list[Arrival]) -> None:
    aborts: dict[int, int] = {}
    step = 0
    for prompt, sampling, pause, life in arrivals:
        request = bench.add(prompt, sampling)
        if life is not None:
            aborts[request] = step + life
        for _ in range(pause):
            step += 1
            advance(bench, aborts, step)
    for _ in range(10):
        step += 1
        advance(bench, aborts, step)
    bench.run()
    bench.assert_empty()
    for request, (prompt, sampling, _, _) in enumerate(arrivals):
        if request not in aborts:
            wanted = expected(prompt, sampling, bench.spec)
            assert bench.results[request].outcome() == wanted.outcome()


def advance(bench: Bench, aborts: dict[int, int], step: int) -> None:
    """Take a step; requests with an odd number are given up between its parts, the others before it."""
    give_up(bench, aborts, step, 0)
    if bench.engine.has_work:
        bench.step(lambda: give_up(bench, aborts, step, 1))
    give_up(bench, aborts, step, 1)


def give_up(bench: Bench, aborts: dict[int, int], step: int, remainder: int) -> None:
    for request, when in aborts.items():
        if when == step and request % 2 == remainder:
            bench.engine.abort(request)
