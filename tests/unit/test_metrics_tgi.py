"""What is counted of models that generate under Text Generation Inference's names."""

from __future__ import annotations

import pytest
from told_engine import ToldEngine

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.messages import Started, StepStats, Tokens
from headrace.server.errors import (
    ChatTemplateError,
    HeadraceError,
    InputTooLongError,
    InvalidJsonError,
    RequestRefusedError,
)
from headrace.server.repository.model import Task
from headrace.server.tasks.generation import Timeline
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestLabels, RequestMetrics
from headrace.server.telemetry.tgi import DURATION_BUCKETS

SECOND = 1_000_000_000
LIMITS = GenerationSpec(max_tokens=301, max_sequences=4, kv_tokens=160, block_tokens=8, draft_tokens=2)
MODEL = "model=m,version=1"


def told_engine() -> ToldEngine:
    return ToldEngine(LIMITS)


def refuse(
    engine: ToldEngine, error: type[HeadraceError], method: str = "Generate", protocol: str = "tgi"
) -> None:
    labels = RequestLabels(protocol, method, "m", "1", Task.GENERATE.value)
    engine.requests.ended(labels, "INVALID_ARGUMENT", 0.1, error)


def bounds(found: dict[str, float], name: str, labels: str = MODEL) -> list[float]:
    given = labels.replace("model", ",model", 1)
    return [
        float(key.split("le=")[1].split(",")[0])
        for key in found
        if key.startswith(f"{name}_bucket{{le=") and key.endswith(f"{given}}}") and "+Inf" not in key
    ]


async def test_requests_and_their_durations() -> None:
    engine = told_engine()
    engine.submit(3, max_tokens=5)
    times = Timeline(
        received=SECOND,
        tokenized=int(1.1 * SECOND),
        started=int(1.3 * SECOND),
        first_token=int(1.5 * SECOND),
        finished=int(2.3 * SECOND),
    )
    engine.statistics.observe_finished("length", times, prompt_tokens=20, generated_tokens=5)
    found = engine.scrape()
    expected = {
        f"tgi_request_count_total{{{MODEL}}}": 3,
        f"tgi_request_success_total{{{MODEL}}}": 1,
        f"tgi_request_duration_sum{{{MODEL}}}": 1.3,
        f"tgi_request_validation_duration_sum{{{MODEL}}}": 0.1,
        f"tgi_request_queue_duration_sum{{{MODEL}}}": 0.2,
        f"tgi_request_inference_duration_sum{{{MODEL}}}": 1.0,
        f"tgi_request_mean_time_per_token_duration_sum{{{MODEL}}}": 0.2,
        f"tgi_request_input_length_sum{{{MODEL}}}": 20,
        f"tgi_request_generated_tokens_sum{{{MODEL}}}": 5,
        f"tgi_request_max_new_tokens_sum{{{MODEL}}}": 15,
        f"tgi_request_max_new_tokens_count{{{MODEL}}}": 3,
        f"tgi_queue_size{{{MODEL}}}": 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


async def test_counters_keep_their_names() -> None:
    text = Metrics(RequestMetrics(), lambda: [told_engine().model]).render().decode()
    assert '\ntgi_request_count{model="m",version="1"} 0\n' in text
    assert "tgi_request_count_total" not in text
    for name in ("tgi_batch_concat", "tgi_batch_concat_duration", "tgi_batch_filter_duration"):
        assert f"# TYPE {name} " in text
        assert f"\n{name}{{" not in text


async def test_failures_by_their_cause() -> None:
    engine = told_engine()
    engine.submit(4, max_tokens=5)
    ended = Timeline(received=SECOND, finished=2 * SECOND)
    for _ in range(2):
        engine.statistics.observe_finished("abort", ended, prompt_tokens=1, generated_tokens=0)
    engine.statistics.observe_finished("error", ended, prompt_tokens=1, generated_tokens=0)
    engine.statistics.rejected += 1  # as a text stream does when the engine refused
    engine.statistics.observe_finished("error", ended, prompt_tokens=1, generated_tokens=0)
    engine.statistics.observe_refused()
    refuse(engine, InputTooLongError, protocol="openai", method="ChatCompletions")
    refuse(engine, ChatTemplateError)
    refuse(engine, RequestRefusedError)  # counted above
    refuse(engine, InvalidJsonError)  # no request yet
    refuse(engine, InputTooLongError, method="Tokenize")  # asks for no text
    found = engine.scrape()
    counts = {
        err: found[f"tgi_request_failure_total{{err={err},{MODEL}}}"]
        for err in ("overloaded", "validation", "template", "incomplete", "generation", "dropped")
    }
    assert counts == {
        "overloaded": 1,
        "validation": 2,
        "template": 1,
        "incomplete": 0,
        "generation": 1,
        "dropped": 2,
    }
    assert found[f"tgi_request_count_total{{{MODEL}}}"] == 7
    assert found[f"tgi_request_success_total{{{MODEL}}}"] == 0


async def test_steps_of_the_engine() -> None:
    engine = told_engine()
    first, second, _ = engine.submit(3, max_tokens=5)
    engine.answer(Started(first, 0), Started(second, 0))
    engine.answer(steps=1, prefill=StepStats(1, ns=4_000_000, forward_ns=3_000_000))
    engine.answer(
        steps=4,
        prefill=StepStats(2, failures=1, ns=4_000_000, forward_ns=3_000_000),
        decode=StepStats(2, ns=6_000_000, forward_ns=4_000_000, choice_ns=1_000_000),
        running=2,
        free_blocks=5,
        total_blocks=20,
    )
    found = engine.scrape()
    expected = {
        f"tgi_batch_current_size{{{MODEL}}}": 2,
        f"tgi_batch_current_max_tokens{{{MODEL}}}": 120,
        f"tgi_batch_max_total_tokens{{{MODEL}}}": 160,
        f"tgi_batch_next_size_sum{{{MODEL}}}": 2,
        f"tgi_batch_next_size_count{{{MODEL}}}": 1,
        f"tgi_batch_inference_count_total{{method=prefill,{MODEL}}}": 2,
        f"tgi_batch_inference_success_total{{method=prefill,{MODEL}}}": 1,
        f"tgi_batch_inference_failure_total{{method=prefill,{MODEL}}}": 1,
        f"tgi_batch_inference_count_total{{method=decode,{MODEL}}}": 2,
        f"tgi_batch_inference_duration_sum{{method=prefill,{MODEL}}}": 0.004,
        f"tgi_batch_inference_duration_count{{method=prefill,{MODEL}}}": 1,
        f"tgi_batch_inference_duration_sum{{method=decode,{MODEL}}}": 0.006,
        f"tgi_batch_inference_duration_count{{method=decode,{MODEL}}}": 2,
        f"tgi_batch_forward_duration_sum{{method=decode,{MODEL}}}": 0.004,
        f"tgi_batch_decode_duration_sum{{method=decode,{MODEL}}}": 0.001,
    }
    assert {name: found[_sorted(name)] for name in expected} == pytest.approx(expected)


def _sorted(name: str) -> str:
    start, inside = name.rstrip("}").split("{")
    return f"{start}{{{','.join(sorted(inside.split(',')))}}}"


async def test_a_restarted_engine_counts_from_zero_again() -> None:
    engine = told_engine()
    engine.answer(steps=5, decode=StepStats(5, ns=5_000_000))
    engine.generator.died(engine.instance)
    engine.answer(steps=2, decode=StepStats(2, ns=2_000_000))
    found = engine.scrape()
    name = _sorted(f"tgi_batch_inference_duration_sum{{method=decode,{MODEL}}}")
    assert found[name] == pytest.approx(0.007)
    assert found[f"nv_inference_exec_count_total{{{MODEL}}}"] == 7


async def test_tokens_by_guessing() -> None:
    engine = told_engine()
    (request,) = engine.submit(1, max_tokens=50)
    engine.answer(Started(request, 0))
    for tokens in ((1,), (1, 2), (1, 2, 3), (1, 2, 3), (1,), tuple(range(9))):  # the last cannot be guesses
        engine.answer(Tokens(request, 0, tokens))
    found = engine.scrape()
    name = "tgi_request_skipped_tokens"
    assert bounds(found, name) == [0, 1, 2]
    assert found[f"{name}_sum{{{MODEL}}}"] == 1 + 2 + 2
    counts = [found[f"{name}_bucket{{le={le},{MODEL}}}"] for le in ("0.0", "1.0", "2.0")]
    assert counts == [2 + 9, 2 + 9 + 1, 2 + 9 + 3]


async def test_buckets_are_those_of_the_router() -> None:
    found = told_engine().scrape()
    durations = bounds(found, "tgi_request_duration")
    assert durations == list(DURATION_BUCKETS)
    assert len(durations) == 35
    assert durations[0] == pytest.approx(0.00015)
    assert durations[-1] == pytest.approx(0.0001 * 1.5**35)
    assert bounds(found, "tgi_request_input_length") == [3.0 * part for part in range(1, 101)]
    for name in ("generated_tokens", "max_new_tokens"):
        wanted = [301 * part / 100 for part in range(1, 101)]
        assert bounds(found, f"tgi_request_{name}") == wanted
    assert bounds(found, "tgi_batch_next_size") == list(range(1, 1025))


def test_servers_without_such_models_have_none_of_it() -> None:
    assert "tgi_" not in Metrics(RequestMetrics(), list).render().decode()
