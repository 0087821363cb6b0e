"""Decoders that choose tokens themselves, and steps begun before the last one was read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from generation_engines import VOCABULARY, Bench, Result, expected, make_spec

from headrace.runtimes.generation.messages import Rejected
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.postprocess import NOT_FINITE


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(4, VOCABULARY), k=length)


def greedy(tokens: int, **others: Any) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, **others)


def drawn(tokens: int, seed: int, **others: Any) -> Sampling:
    return Sampling(max_tokens=tokens, seed=seed, ignore_eos=True, **others)


@pytest.fixture(params=[True, False], ids=["lazy", "at once"])
def make(request: pytest.FixtureRequest) -> Callable[..., Bench]:
    return lambda **spec: Bench(make_spec(**spec), paged=True, sampling="ahead", lazy=request.param)


def check(bench: Bench, asked: dict[int, tuple[list[int], Sampling]]) -> None:
    for request, (prompt, sampling) in asked.items():
        assert bench.results[request].outcome() == expected(prompt, sampling, bench.spec).outcome()


def ask(bench: Bench, *samplings: Sampling, length: int = 6) -> dict[int, tuple[list[int], Sampling]]:
    texts = [prompt_of(length + number, number) for number in range(len(samplings))]
    return {
        bench.add(text, sampling): (text, sampling) for text, sampling in zip(texts, samplings, strict=True)
    }


def test_a_lone_sequence_is_always_ahead(make: Callable[..., Bench]) -> None:
    bench = make()
    asked = ask(bench, greedy(12))
    bench.run()
    check(bench, asked)
    # the prompt's token is the sampler's, the one behind it has nothing to be ahead of, the rest is ahead
    assert (bench.engine.stats.steps, bench.drawing.ahead, bench.drawing.wasted) == (12, 10, 0)
    bench.assert_empty()


def test_a_full_batch_ends_at_different_steps_while_others_wait(make: Callable[..., Bench]) -> None:
    bench = make()
    seeded = [drawn(9 + 3 * seed, seed, top_k=5, top_p=0.9) for seed in range(4)]
    asked = ask(bench, *(greedy(8 + 5 * number) for number in range(4)), *seeded)
    bench.run()
    check(bench, asked)
    assert bench.drawing.ahead > 15
    # an end by length is known before
    assert bench.drawing.wasted == 0
    bench.assert_empty()


def test_rows_of_sequences_that_ended_are_dropped(make: Callable[..., Bench]) -> None:
    bench = make()
    prompts = [prompt_of(6, seed) for seed in range(4)]
    whole = [expected(prompt, greedy(20), bench.spec).samples[0] for prompt in prompts]
    # the two in the middle meet a stop token after 5 and 11 tokens, or where it came before
    stops: list[tuple[int, ...]] = [(), (whole[1][5],), (whole[2][11],), ()]
    asked = {}
    for prompt, stop in zip(prompts, stops, strict=True):
        sampling = greedy(20, stop_token_ids=stop)
        asked[bench.add(prompt, sampling)] = (prompt, sampling)
    bench.run()
    check(bench, asked)
    assert {len(bench.results[request].samples[0]) for request in asked} != {20}
    rows = [len(step) for step in bench.decoder.steps]
    assert sum(rows) > sum(len(bench.results[request].samples[0]) for request in asked)
    bench.assert_empty()


def test_a_step_whose_sequences_all_ended_is_never_read(make: Callable[..., Bench]) -> None:
    bench = make()
    prompt = prompt_of(6, 1)
    whole = expected(prompt, greedy(20), bench.spec).samples[0]
    stop = next(token for place, token in enumerate(whole) if place > 3 and token not in whole[:place])
    result = bench.one(prompt, greedy(20, stop_token_ids=(stop,)))
    assert result.samples[0] == whole[: whole.index(stop) + 1]
    assert bench.drawing.wasted == 1
    bench.assert_empty()
    # what it wrote is found by nobody: the same beginning again, and one that goes on behind the end
    for text in (prompt, [*prompt, *whole[: whole.index(stop) + 1], 9, 8, 7]):
        assert bench.one(text, greedy(9)).outcome() == expected(text, greedy(9), bench.spec).outcome()
    assert bench.engine.stats.prefix_hits > 0


def test_whoever_gets_the_blocks_of_a_dropped_row_writes_later(make: Callable[..., Bench]) -> None:
    # 10 blocks: the one that a sequence gives up is the next one that another gets, in the step behind
    bench = make(kv_tokens=40, max_sequences=2, max_tokens=32, prefix_cache=False)
    prompt, other = prompt_of(5, 3), prompt_of(6, 4)
    whole = expected(prompt, greedy(20), bench.spec).samples[0]
    for place in range(3, 15):
        ending = greedy(20, stop_token_ids=(whole[place],))
        first, second = bench.add(prompt, ending), bench.add(other, greedy(24))
        third = bench.add(prompt_of(9, 5), drawn(12, place))
        bench.run()
        check(bench, {first: (prompt, ending), second: (other, greedy(24))})
        check(bench, {third: (prompt_of(9, 5), drawn(12, place))})
        bench.assert_empty()


def test_aborts_between_steps_and_while_one_is_ahead(make: Callable[..., Bench]) -> None:
    bench = make()
    asked = ask(bench, *(drawn(20, seed) for seed in range(4)))
    for _ in range(6):
        bench.step()
    assert bench.drawing.ahead
    bench.engine.abort(1)
    bench.step(lambda: None if bench.engine.abort(2) else pytest.fail("it is gone"))
    late = ask(bench, greedy(7), drawn(9, 5), length=11)
    bench.run()
    check(bench, {request: asked[request] for request in (0, 3)} | late)
    bench.assert_empty()


def test_aborting_all_forgets_what_was_begun(make: Callable[..., Bench]) -> None:
    bench = make()
    ask(bench, greedy(20))
    for _ in range(5):
        bench.step()
    bench.engine.abort(0)
    assert not bench.engine.has_work
    assert bench.drawing.wasted == 1
    bench.assert_empty()
    text = prompt_of(8, 9)
    assert bench.one(text, greedy(6)).outcome() == expected(text, greedy(6), bench.spec).outcome()


def test_one_sample_of_several_ends(make: Callable[..., Bench]) -> None:
    bench = make()
    sampling = drawn(16, 4, n=3, best_of=3)
    text = prompt_of(7, 2)
    request = bench.add(text, sampling)
    for _ in range(5):
        bench.step()
    assert bench.drawing.ahead
    assert bench.engine.end(request, 1)
    bench.run()
    wanted = expected(text, sampling, bench.spec)
    found = bench.results[request]
    assert {sample: found.samples[sample] for sample in (0, 2)} == {n: wanted.samples[n] for n in (0, 2)}
    assert found.samples[1] == wanted.samples[1][: len(found.samples[1])]
    assert 1 not in found.finishes
    bench.assert_empty()


def test_whoever_waits_for_blocks_keeps_nobody_back(make: Callable[..., Bench]) -> None:
    # 16 blocks: two sequences run in a few of them while the third, of 11, waits with two slots free
    bench = make(kv_tokens=64, max_tokens=60, prefix_cache=False)
    asked = ask(bench, greedy(16), drawn(14, 1), length=5)
    late = (prompt_of(42, 8), greedy(9))
    asked[bench.add(*late)] = late
    waited = 0
    while bench.engine.stats.waiting:
        before = bench.drawing.ahead
        bench.step()
        waited += bench.drawing.ahead > before
    assert waited > 8
    bench.run()
    check(bench, asked)
    assert not bench.engine.stats.preemptions
    bench.assert_empty()


def test_whoever_waits_for_blocks_gets_them_when_they_are_given_back(make: Callable[..., Bench]) -> None:
    bench = make(kv_tokens=64, max_tokens=60, prefix_cache=False)
    asked = {}
    for length, sampling in ((21, greedy(6)), (6, greedy(30)), (30, greedy(5))):
        asked[bench.add(prompt_of(length, length), sampling)] = (prompt_of(length, length), sampling)
    while not bench.results[2].samples:
        # with blocks for it the third does not wait for the second
        assert len(bench.results[1].samples.get(0, ())) < 12
        bench.step()
    assert bench.results[0].finishes
    bench.run()
    check(bench, asked)


def test_few_blocks_preempt_as_before(make: Callable[..., Bench]) -> None:
    bench = make(kv_tokens=64, max_tokens=48)
    asked = ask(bench, *(drawn(30, seed) for seed in range(4)))
    bench.run()
    check(bench, asked)
    assert bench.engine.stats.preemptions
    assert bench.drawing.ahead
    bench.assert_empty()


@pytest.mark.parametrize(
    "other",
    [
        {"logprobs": 1},
        {"repetition_penalty": 1.3},
        {"logit_bias": ((5, 2.0),)},
        {"typical_p": 0.5},
        {"bad_words": ((5,),)},
        {"allowed_token_ids": tuple(range(4, 20))},
        {"min_tokens": 6, "ignore_eos": False},
        {"n": 2, "best_of": 3},
        {"n": 2, "best_of": 2, "beam": True},
        {"watermark": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_the_decoder_cannot_draw_the_sampler_does(
    make: Callable[..., Bench], other: dict[str, Any]
) -> None:
    bench = make()
    rest = Sampling(**{"max_tokens": 10, "seed": 1, "ignore_eos": True, **other})
    plain = Bench(bench.spec, paged=True)
    for each in (plain, bench):
        ask(each, drawn(18, 7), rest)
        each.run()
    for request, result in plain.results.items():
        assert bench.results[request].outcome() == result.outcome()
    draws = [sum(draw is not None for draw in step.draws) for step in bench.drawing.begun]
    # beside the other all draws are of the first; behind it the first is ahead again
    assert sum(draws) >= 17
    assert bench.drawing.ahead > 4
    bench.assert_empty()


def test_a_newcomer_joins_two_steps_later_at_most(make: Callable[..., Bench]) -> None:
    bench = make()
    asked = ask(bench, greedy(20))
    for _ in range(5):
        bench.step()
    late = ask(bench, greedy(5), length=9)
    before = bench.engine.stats.steps
    while not bench.results[1].samples:
        bench.step()
    assert bench.engine.stats.steps <= before + 2
    bench.run()
    check(bench, asked | late)


def test_rows_that_are_not_finite_reject_their_own_request(make: Callable[..., Bench]) -> None:
    bench = make()
    prompts = [prompt_of(6, seed) for seed in range(3)]
    texts = [expected(prompt, greedy(16), bench.spec).samples[0] for prompt in prompts]
    others = {token for text in (texts[0], texts[2]) for token in text}
    bad = next(token for token in texts[1][2:] if token not in others)
    bench.decoder.nan_on = bad
    asked = {bench.add(prompt, greedy(16)): (prompt, greedy(16)) for prompt in prompts}
    bench.run()
    assert bench.results[1].rejected == Rejected(1, "execution", NOT_FINITE)
    assert bench.results[1].samples[0] == texts[1][: texts[1].index(bad) + 1]
    check(bench, {request: asked[request] for request in (0, 2)})
    bench.assert_empty()


def test_a_step_that_fails_ahead_takes_nothing_from_the_one_before(make: Callable[..., Bench]) -> None:
    bench = make()
    prompts = [prompt_of(6, seed) for seed in range(2)]
    texts = [expected(prompt, greedy(16), bench.spec).samples[0] for prompt in prompts]
    bad = next(token for place, token in enumerate(texts[0]) if place > 3 and token not in texts[1])
    bench.decoder.fail_on = bad
    for prompt in prompts:
        bench.add(prompt, greedy(16))
    bench.run()
    told = texts[0].index(bad) + 1
    for request, text in enumerate(texts):
        rejected = Rejected(request, "execution", "the decoder was told to fail")
        assert bench.results[request].rejected == rejected
        assert bench.results[request].samples[0] == text[:told]
    stats = bench.engine.stats.decode
    assert stats.failures == 1
    bench.decoder.fail_on = None
    bench.assert_empty()
    assert bench.one(prompts[0], greedy(16)).samples[0] == texts[0]


def test_a_decoder_that_only_draws_is_never_ahead() -> None:
    bench = Bench(make_spec(), paged=True, sampling="device")
    asked = ask(bench, greedy(12), drawn(9, 1))
    bench.run()
    check(bench, asked)
    assert bench.drawing.ahead == 0
    assert any(None not in step.draws for step in bench.drawing.begun)


def test_the_host_samples_when_told_to() -> None:
    bench = Bench(make_spec(), sampling="host", lazy=False)
    asked = ask(bench, greedy(12), drawn(9, 1))
    bench.run()
    check(bench, asked)
    assert not bench.drawing.begun


def test_ends_of_the_model_are_ends(make: Callable[..., Bench]) -> None:
    def outcome(seed: int) -> Result:
        return expected(prompt_of(6, seed), Sampling(max_tokens=30, seed=seed), bench.spec)

    bench = make(max_sequences=8)
    seeds = [seed for seed in range(60) if 3 < len(outcome(seed).samples[0]) < 20][:8]
    assert len(seeds) == 8
    for seed in seeds:
        bench.add(prompt_of(6, seed), Sampling(max_tokens=30, seed=seed))
    bench.run()
    for request, seed in enumerate(seeds):
        assert bench.results[request].outcome() == outcome(seed).outcome()
    assert bench.drawing.ahead
    bench.assert_empty()
