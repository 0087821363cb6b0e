"""Steps that a decoder computes part by part: what happens in between."""

from __future__ import annotations

import random

from generation_engines import VOCABULARY, Bench, expected, make_spec

from headrace.runtimes.generation.messages import Rejected
from headrace.runtimes.generation.parameters import Sampling

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(4, VOCABULARY), k=length)


def test_what_is_given_up_between_the_parts_of_a_step_is_not_computed() -> None:
    bench = Bench(make_spec(max_sequences=4, prefill_tokens=64), together="alike")
    lengths = [9, 13, 17]  # too unlike to be computed in one run
    requests = [bench.add(prompt_of(length, length), GREEDY) for length in lengths]
    left: list[bool] = []

    def leave() -> None:
        if not left:
            left.append(bench.engine.abort(requests[1]))

    bench.step(leave)
    assert left == [True]
    assert [chunk.slot for step in bench.decoder.steps for chunk in step] == [0, 2]
    del bench.results[requests[1]]
    bench.run()
    for index in (0, 2):
        wanted = expected(prompt_of(lengths[index], lengths[index]), GREEDY, bench.spec)
        assert bench.results[requests[index]].outcome() == wanted.outcome()
    bench.assert_empty()


def test_prompts_of_like_length_are_one_part() -> None:
    bench = Bench(make_spec(max_sequences=4, prefill_tokens=64), together="alike")
    prompts = [prompt_of(length, length) for length in (9, 13, 9)]
    requests = [bench.add(prompt, GREEDY) for prompt in prompts]
    bench.step()
    assert [[len(chunk.tokens) for chunk in step] for step in bench.decoder.steps] == [[9, 9], [13]]
    bench.run()
    for request, prompt in zip(requests, prompts, strict=True):
        assert bench.results[request].outcome() == expected(prompt, GREEDY, bench.spec).outcome()


def test_decodes_do_not_end_with_the_prompt_beside_them() -> None:
    bench = Bench(make_spec(max_sequences=4, prefill_tokens=64), together="mixed")
    others = [bench.add(prompt_of(length, length), GREEDY) for length in (7, 9)]
    bench.step()
    bench.decoder.fail_on = 2
    failing = bench.add([5, 2, 6], GREEDY)
    bench.decoder.steps.clear()
    bench.step()
    assert bench.results[failing].rejected == Rejected(failing, "execution", "the decoder was told to fail")
    assert [[len(chunk.tokens) for chunk in step] for step in bench.decoder.steps] == [[1, 1, 3], [1, 1], [3]]
    assert [len(bench.results[other].samples[0]) for other in others] == [2, 2]
    bench.decoder.fail_on = None
    bench.run()
    for other, length in zip(others, (7, 9), strict=True):
        wanted = expected(prompt_of(length, length), GREEDY, bench.spec)
        assert bench.results[other].outcome() == wanted.outcome()
    bench.assert_empty()


def test_a_part_that_fails_ends_its_own_request_only() -> None:
    bench = Bench(make_spec(max_sequences=4, prefill_tokens=64), together="alike")
    failing = bench.add([5, 2, 6], GREEDY)
    other = bench.add(prompt_of(8, 1), GREEDY)
    bench.decoder.fail_on = 2
    bench.step()
    assert bench.results[failing].rejected == Rejected(failing, "execution", "the decoder was told to fail")
    assert len(bench.results[other].samples[0]) == 1
    bench.decoder.fail_on = None
    bench.run()
    assert bench.results[other].outcome() == expected(prompt_of(8, 1), GREEDY, bench.spec).outcome()
    bench.assert_empty()
