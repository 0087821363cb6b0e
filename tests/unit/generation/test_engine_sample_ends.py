"""One sample of a request ends early: what it holds is given back at once, and its siblings go on."""

from __future__ import annotations

import random

import pytest
from generation_engines import VOCABULARY, Bench, expected, make_spec

from headrace.runtimes.generation.parameters import Sampling

KINDS = {
    "n": Sampling(max_tokens=12, seed=1, n=3, best_of=3, ignore_eos=True),
    "beams": Sampling(max_tokens=12, n=1, best_of=3, beam=True, ignore_eos=True),
    "best of": Sampling(max_tokens=12, seed=1, n=1, best_of=6, ignore_eos=True),
}


def prompt_of(length: int) -> list[int]:
    return random.Random(0).choices(range(4, VOCABULARY), k=length)


@pytest.mark.parametrize("sample", [0, 1, 2])
@pytest.mark.parametrize("slots", [2, 4])
def test_a_sample_ends_at_any_step_and_its_siblings_go_on(sample: int, slots: int) -> None:
    everything = expected(prompt_of(13), KINDS["n"], make_spec())
    for steps in range(14):
        bench = Bench(make_spec(step_tokens=6, prefill_tokens=6, draft_tokens=2, max_sequences=slots))
        request = bench.add(prompt_of(13), KINDS["n"])
        result = bench.results[request]
        for _ in range(steps):
            bench.step()
        before = bench.engine.stats
        told = list(result.samples.get(sample, ()))
        running = bool(told) and sample not in result.finishes
        assert bench.engine.end(request, sample) is running
        assert not running or not bench.engine.end(request, sample)
        after = bench.engine.stats
        gone = before.running + before.waiting - after.running - after.waiting
        assert gone == running
        assert after.free_slots - before.free_slots == before.running - after.running
        assert len(bench.decoder.held) == after.running
        bench.run()
        for other in range(3):
            whole = everything.samples[other]
            assert result.samples[other] == (told if running and other == sample else whole)
        assert (sample in result.finishes) is not running
        bench.assert_empty()


def test_a_request_ends_with_its_last_sample() -> None:
    bench = Bench(make_spec())
    request = bench.add(prompt_of(5), KINDS["n"])
    bench.step()
    assert [bench.engine.end(request, sample) for sample in (2, 0, 1, 1)] == [True, True, True, False]
    assert not bench.engine.has_work
    assert not bench.results[request].finishes
    bench.assert_empty()


@pytest.mark.parametrize("kind", ["beams", "best of"])
def test_samples_that_are_told_together_do_not_end_alone(kind: str) -> None:
    bench = Bench(make_spec())
    request = bench.add(prompt_of(5), KINDS[kind])
    for _ in range(3):
        bench.step()
    assert not bench.engine.end(request, 0)
    bench.run()
    assert len(bench.results[request].samples[0]) == 12
