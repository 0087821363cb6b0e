"""Random requests, arrivals and aborts on random engines: outcomes are right, all is given back."""

from __future__ import annotations

from generation_engines import Bench, expected, make_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.parameters import Sampling

# few different tokens and prompts that share beginnings: the prefix cache is used
PROMPTS = st.builds(
    lambda start, rest: [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][:start] + rest,
    st.integers(0, 12),
    st.lists(st.integers(2, 5), min_size=1, max_size=16),
)


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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=specs(),
    paged=st.booleans(),
    together=st.booleans(),
    arrivals=st.lists(
        st.tuples(PROMPTS, samplings(), st.integers(0, 6), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=9,
    ),
)
def test_any_mix(
    spec: GenerationSpec,
    paged: bool,
    together: bool,
    arrivals: list[tuple[list[int], Sampling, int, int | None]],
) -> None:
    bench = Bench(spec, paged=paged, together=together)
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
            wanted = expected(prompt, sampling, spec)
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
