"""How requests begin, fail, are given up and end; what they hold is always given back."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from generation_engines import EOS, VOCABULARY, Bench, Result, encode, expected, make_spec

from headrace.runtimes.generation.messages import Add, Event, Rejected, Started, Tokens
from headrace.runtimes.generation.parameters import Sampling

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    # 2 and 3 are left for tests that mark a request
    return random.Random(seed).choices(range(4, VOCABULARY), k=length)


def tokens_of(events: list[Event]) -> list[Tokens]:
    return [event for event in events if isinstance(event, Tokens)]


def altered(sampling: Sampling, **changes: object) -> Sampling:
    return msgspec.structs.replace(sampling, **changes)


def test_started_is_told_before_the_step_runs() -> None:
    bench = Bench(make_spec())
    bench.add(prompt_of(20), GREEDY)
    told: list[tuple[int, list[Event]]] = []
    bench.engine.step(lambda events: told.append((len(bench.decoder.steps), events)))
    (steps, events), (_, after) = told
    assert (steps, events) == (0, [Started(0, 0)])
    assert len(after) == 1
    assert isinstance(after[0], Tokens)


def test_every_step_tells_once_of_each_sequence() -> None:
    bench = Bench(make_spec())
    for seed in range(3):
        bench.add(prompt_of(5, seed), GREEDY)
    bench.step()
    told: list[list[Event]] = []
    bench.engine.step(told.append)
    (events,) = told
    assert [(event.request, len(event.token_ids)) for event in tokens_of(events)] == [(0, 1), (1, 1), (2, 1)]
    assert len(events) == 3


def test_long_prompts_are_cut_so_that_others_decode_meanwhile() -> None:
    bench = Bench(make_spec(step_tokens=8, prefill_tokens=64))
    bench.add(prompt_of(4), GREEDY)
    bench.step()
    bench.add(prompt_of(60, 1), GREEDY)
    for _ in range(3):
        bench.step()
    sizes = [[len(chunk.tokens) for chunk in step] for step in bench.decoder.steps]
    assert sizes == [[4], [1, 8], [1, 8], [1, 8]]
    bench.run()
    bench.assert_empty()


def test_a_lone_prompt_uses_the_larger_budget() -> None:
    bench = Bench(make_spec(step_tokens=8, prefill_tokens=64))
    bench.one(prompt_of(60), altered(GREEDY, max_tokens=1))
    assert [len(chunk.tokens) for step in bench.decoder.steps for chunk in step] == [60]


def test_more_decodes_than_the_budget_still_move_prompts_on() -> None:
    bench = Bench(make_spec(step_tokens=2, max_sequences=4))
    samplings = [altered(GREEDY, max_tokens=60), *[GREEDY] * 3]
    for seed, sampling in enumerate(samplings):
        bench.add(prompt_of(10, seed), sampling)
    for _ in range(14):
        bench.step()
    assert bench.results[3].samples
    bench.run()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (np.array([], "<i4"), "empty"),
        (np.array([1, VOCABULARY], "<i4"), f"token id {VOCABULARY} is out of the vocabulary"),
        (np.array([-1, 5], "<i4"), "token id -1 is out of the vocabulary"),
        (np.full(97, 5, "<i4"), "97 tokens"),
        (np.full(96, 5, "<i4"), "leaves no room"),
        (np.array([5], "i1"), "int32"),
    ],
)
def test_impossible_prompts_are_refused(prompt: np.ndarray, text: str) -> None:
    bench = Bench(make_spec())
    (event,) = bench.engine.add(Add(9, prompt.tobytes(), GREEDY))
    assert isinstance(event, Rejected)
    assert (event.request, event.kind) == (9, "invalid")
    assert text in event.message
    bench.assert_empty()


def test_what_the_kv_cache_can_never_hold_is_refused() -> None:
    bench = Bench(make_spec(kv_tokens=32, max_tokens=96))
    wide = Sampling(max_tokens=10, best_of=5, beam=True)
    long = Sampling(max_tokens=10, best_of=4, beam=True)
    for prompt, sampling, text in (
        (40, GREEDY, "may have 32"),
        (4, wide, "5 beams are more than the 4"),
        (4, long, "KV cache"),
    ):
        rejected = bench.one(prompt_of(prompt), sampling).rejected
        assert rejected is not None
        assert rejected.kind == "invalid"
        assert text in rejected.message
    bench.assert_empty()


def test_a_full_context_ends_a_sample() -> None:
    for spec in (make_spec(max_tokens=24), make_spec(kv_tokens=24)):
        bench = Bench(spec)
        result = bench.one(prompt_of(20), altered(GREEDY, max_tokens=100))
        assert len(result.samples[0]) == 4
        assert result.finishes == {0: ("length", None, False)}


@pytest.mark.parametrize("scored", [None, 1])
def test_no_tokens_are_computed_for_max_tokens_0(scored: int | None) -> None:
    bench = Bench(make_spec())
    sampling = Sampling(max_tokens=0, n=2, best_of=2, prompt_logprobs=scored)
    result = bench.one(prompt_of(20), sampling)
    assert result.finishes == {0: ("length", None, False), 1: ("length", None, False)}
    assert result.samples == {0: [], 1: []}
    assert (result.prompt_logprobs is None) is (scored is None)
    assert bench.engine.stats.generated_tokens == 0
    # what it computed is there for others
    assert bench.one(prompt_of(20), GREEDY).started[0].cached_tokens == 16
    bench.assert_empty()


def test_samples_beyond_the_slots_wait_and_are_the_same() -> None:
    sampling = Sampling(max_tokens=10, temperature=1, seed=5, n=7, best_of=7, logprobs=0)
    outcomes = []
    for slots, cache in ((1, True), (2, False), (3, True), (8, True)):
        bench = Bench(make_spec(max_sequences=slots, prefix_cache=cache))
        bench.one(prompt_of(21), sampling)
        assert bench.results[0].outcome() == expected(prompt_of(21), sampling, bench.spec).outcome()
        bench.assert_empty()
        outcomes.append((bench.decoder.copies, len({tuple(s) for s in bench.results[0].samples.values()})))
    assert [copies for copies, _ in outcomes] == [0, 1, 2, 6]
    assert all(different > 3 for _, different in outcomes)


def test_the_best_samples_come_last_and_together() -> None:
    sampling = Sampling(max_tokens=10, temperature=1, seed=5, n=2, best_of=6)
    bench = Bench(make_spec())
    bench.add(prompt_of(9), sampling)
    events: list[Event] = []
    while bench.engine.has_work:
        bench.engine.step(events.extend)
    assert [type(event) for event in events] == [Started, Tokens, Tokens]
    every = expected(prompt_of(9), altered(sampling, logprobs=0), bench.spec)
    means = {
        sample: sum(entry.logprob for entry in entries) / len(entries)
        for sample, entries in every.logprobs.items()
    }
    ranked = sorted(means, key=lambda sample: -means[sample])
    told = tokens_of(events)
    assert [list(event.token_ids) for event in told] == [every.samples[s] for s in ranked[:2]]
    assert [(event.sample, event.logprobs) for event in told] == [(0, ()), (1, ())]
    bench.assert_empty()


KINDS = {
    "greedy": GREEDY,
    "n": Sampling(max_tokens=12, seed=1, n=3, best_of=3, ignore_eos=True),
    "beams": Sampling(max_tokens=12, n=1, best_of=3, beam=True, ignore_eos=True),
    "best of": Sampling(max_tokens=12, seed=1, n=1, best_of=6, ignore_eos=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_abort_at_any_step_frees_everything_and_hurts_nobody(kind: str) -> None:
    for steps in range(12):
        bench = Bench(make_spec(step_tokens=6, prefill_tokens=6, draft_tokens=2, max_sequences=4))
        aborted = bench.add(prompt_of(13), KINDS[kind])
        other = bench.add(prompt_of(9, 1), GREEDY)
        for _ in range(steps):
            bench.step()
        assert bench.engine.abort(aborted)
        assert not bench.engine.abort(aborted)
        stats = bench.engine.stats
        assert stats.running + stats.waiting <= 1
        del bench.results[aborted]  # nothing of it may be told any more
        bench.run()
        assert bench.results[other].outcome() == expected(prompt_of(9, 1), GREEDY, bench.spec).outcome()
        bench.assert_empty()


def test_a_waiting_request_can_be_aborted() -> None:
    bench = Bench(make_spec(max_sequences=1))
    for seed in range(3):
        bench.add(prompt_of(9, seed), GREEDY)
    bench.step()
    bench.engine.abort(1)
    bench.run()
    assert not bench.results[1].started
    assert len(bench.results[2].samples[0]) == 12
    bench.assert_empty()


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    bench = Bench(make_spec(max_sequences=2))
    running = bench.add(prompt_of(6), GREEDY)
    failing = bench.add([5, 2, 6], GREEDY)
    waiting = bench.add(prompt_of(8, 1), GREEDY)
    bench.decoder.fail_on = 2
    bench.run()
    for request in (running, failing):
        assert bench.results[request].rejected == Rejected(
            request, "execution", "the decoder was told to fail"
        )
    assert bench.results[waiting].outcome() == expected(prompt_of(8, 1), GREEDY, bench.spec).outcome()
    bench.assert_empty()


def test_an_unexpected_error_is_traced_and_ends_the_steps_requests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(make_spec())
    with monkeypatch.context() as patch:
        patch.setattr(bench.decoder, "pool", None)
        request = bench.add(prompt_of(6), GREEDY)
        bench.run()
    rejected = bench.results[request].rejected
    assert rejected is not None
    assert rejected.kind == "execution"
    assert "TypeError" in rejected.message
    assert "Traceback" in capsys.readouterr().err
    assert len(bench.one(prompt_of(6), GREEDY).samples[0]) == 12
    bench.assert_empty()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_not_finite_end_their_request_only(kind: str) -> None:
    bench = Bench(make_spec(max_sequences=8))
    bench.decoder.nan_on = 2
    healthy = bench.add(prompt_of(6), altered(GREEDY, bad_words=((2,),)))
    broken = bench.add([5, 6, 2], altered(KINDS[kind], bad_words=((2,),)))
    bench.run()
    rejected = bench.results[broken].rejected
    assert rejected is not None
    assert rejected.kind == "execution"
    assert "not finite" in rejected.message
    assert len(bench.results[healthy].samples[0]) == 12
    bench.assert_empty()


def test_smaller_priorities_run_first_and_equals_in_order() -> None:
    bench = Bench(make_spec(max_sequences=1))
    for priority in (0, 5, -1, 0, 5):
        bench.add(prompt_of(5), altered(GREEDY, max_tokens=2, priority=priority))
    events: list[Event] = []
    while bench.engine.has_work:
        bench.engine.step(events.extend)
    order = [event.request for event in events if isinstance(event, Started)]
    assert order == [2, 0, 3, 1, 4]


def test_who_comes_last_is_preempted_and_not_started_again() -> None:
    # 20 blocks: four sequences of 4 fit at first, not to their end
    bench = Bench(make_spec(kv_tokens=80))
    sampling = altered(GREEDY, max_tokens=40)
    for seed, priority in enumerate((0, 3, 0, 1)):
        bench.add(prompt_of(10, seed), altered(sampling, priority=priority))
    ended = []
    while bench.engine.has_work:
        bench.step()
        ended += [r for r, result in bench.results.items() if result.finishes and r not in ended]
    assert ended == [0, 2, 3, 1]
    stats = bench.engine.stats
    assert stats.preemptions >= 2
    assert stats.prompt_tokens == 40
    assert stats.generated_tokens == 160
    bench.assert_empty()


def test_a_lookup_counts_tokens_asked_for_and_found() -> None:
    bench = Bench(make_spec())
    for _ in range(2):
        bench.one(prompt_of(20), GREEDY)
    stats = bench.engine.stats
    assert (stats.prefix_queries, stats.prefix_hits) == (40, 16)


def test_rejected_guesses_leave_nothing_that_others_could_find() -> None:
    bench = Bench(make_spec(draft_tokens=4))
    prompt = prompt_of(6, 4) * 3
    sampling = Sampling(max_tokens=50, temperature=1, seed=1, ignore_eos=True, logprobs=1)
    first = bench.one(prompt, sampling)
    drafts = [chunk for step in bench.decoder.steps for chunk in step if chunk.logits > 1]
    assert drafts
    # everything that is cached now is used: the outcome tells whether it is right
    history = [*prompt, *first.samples[0]]
    for end in range(len(prompt), len(history) - 10, 7):
        wanted = expected(history[:end], GREEDY, bench.spec)
        assert bench.one(history[:end], GREEDY).outcome() == wanted.outcome()
    assert bench.results[len(bench.results) - 1].started[0].cached_tokens > len(prompt)
    bench.assert_empty()


def test_eos_counts_only_after_min_tokens() -> None:
    bench = Bench(make_spec())
    sampling = Sampling(max_tokens=30, temperature=0, logit_bias=((EOS, 100.0),), min_tokens=5)
    result = bench.one(prompt_of(8), sampling)
    assert len(result.samples[0]) == 6
    assert result.finishes == {0: ("stop", None, True)}


def test_a_prefix_of_requests_that_arrive_together_is_computed_once() -> None:
    bench = Bench(make_spec(max_sequences=8, kv_tokens=1024, prefill_tokens=16))
    prompts = [[*prompt_of(48), 4 + seed] for seed in range(6)]
    for prompt in prompts:
        bench.add(prompt, GREEDY)
    bench.run()
    for request, prompt in enumerate(prompts):
        assert bench.results[request].outcome() == expected(prompt, GREEDY, bench.spec).outcome()
    assert [result.started[0].cached_tokens for result in bench.results.values()] == [0, *[48] * 5]
    bench.assert_empty()
    assert not bench.engine._scheduler.prefixes._coming


def test_who_waits_for_a_prefix_computes_it_when_nobody_else_does_any_more() -> None:
    bench = Bench(make_spec(prefill_tokens=8, step_tokens=8))
    first = bench.add(prompt_of(60), GREEDY)
    second = bench.add([*prompt_of(60), 5], GREEDY)
    bench.step()
    assert not bench.results[second].started
    bench.engine.abort(first)
    bench.run()
    assert bench.results[second].outcome() == expected([*prompt_of(60), 5], GREEDY, bench.spec).outcome()
    assert bench.results[second].started[0].cached_tokens == 8
    assert not bench.engine._scheduler.prefixes._coming


class BrokenGrammar:
    """A grammar of a sample that cannot begin, or whose mask fails."""

    def __init__(self, *, begins: bool) -> None:
        self.begins = begins
        self.terminated = False

    def matcher(self) -> BrokenGrammar:
        if not self.begins:
            raise RuntimeError("no matcher")
        return self

    def mask(self, row: object) -> None:
        raise RuntimeError("no mask")


@pytest.mark.parametrize("begins", [False, True])
def test_a_broken_grammar_ends_those_it_was_sampled_with_at_most(begins: bool) -> None:
    bench = Bench(make_spec(max_sequences=2))
    waiting = [Add(number, encode([5, 6, 7]), GREEDY) for number in range(3)]
    bench.results = {number: Result() for number in range(3)}
    bench.take(bench.engine.add(waiting[0]))
    bench.take(bench.engine.add(waiting[1], BrokenGrammar(begins=begins)))  # type: ignore[arg-type]
    bench.take(bench.engine.add(waiting[2]))
    bench.run()
    rejected = bench.results[1].rejected
    assert rejected is not None
    assert rejected.message == f"unexpected error: RuntimeError: no {'mask' if begins else 'matcher'}"
    assert (bench.results[0].rejected is None) is not begins
    assert len(bench.results[2].samples[0]) == 12
    bench.assert_empty()
