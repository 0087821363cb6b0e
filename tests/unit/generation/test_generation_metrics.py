"""What is counted of models that generate, under our names, vLLM's and Triton's."""

from __future__ import annotations

import pytest
from metric_samples import scrape
from told_engine import ToldEngine

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.messages import Started, Tokens
from headrace.server.errors import TaskNotSupportedError, UnsupportedError
from headrace.server.tasks.batching import batcher_of
from headrace.server.tasks.generation import Timeline
from headrace.server.tasks.infer import infer
from headrace.server.tasks.tensors import InferRequest
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.requests import RequestMetrics

SECOND = 1_000_000_000
LIMITS = GenerationSpec(max_tokens=300, max_sequences=4, kv_tokens=160)


def finished(**times: float) -> Timeline:
    return Timeline(received=SECOND, **{key: int((1 + value) * SECOND) for key, value in times.items()})


async def test_numbers_of_engines_and_requests() -> None:
    engine = ToldEngine(LIMITS)
    first, second, _ = engine.submit(3, max_tokens=5)
    engine.answer(Started(first, 16), Started(second, 0))
    engine.answer(
        Tokens(first, 0, (1, 2, 3), finish="stop"),
        free_slots=3,
        free_blocks=7,
        total_blocks=10,
        preemptions=2,
        prefix_queries=40,
        prefix_hits=16,
        generated_tokens=3,
        steps=4,
    )
    timeline = finished(started=0.2, first_token=0.5, finished=1.1)
    engine.statistics.observe_finished("stop", timeline, prompt_tokens=20, generated_tokens=3)
    engine.statistics.observe_finished("abort", finished(), prompt_tokens=20, generated_tokens=0)
    samples = engine.scrape()
    ours, theirs = "{model=m,version=1}", "{engine=0,model_name=m}"
    expected = {
        f"headrace_generation_requests_running{ours}": 1,
        f"headrace_generation_requests_waiting{ours}": 1,
        f"headrace_queue_size{ours}": 1,
        f"headrace_generation_slots_free{ours}": 3,
        f"headrace_kv_blocks{ours}": 10,
        f"headrace_kv_blocks_used{ours}": 3,
        f"headrace_generated_tokens_total{ours}": 3,
        f"headrace_preemptions_total{ours}": 2,
        f"headrace_first_token_seconds_sum{ours}": 0.5,
        f"vllm:num_requests_running{theirs}": 1,
        f"vllm:num_requests_waiting{theirs}": 1,
        f"vllm:kv_cache_usage_perc{theirs}": 0.3,
        f"vllm:prompt_tokens_total{theirs}": 40,
        f"vllm:prompt_tokens_cached_total{theirs}": 16,
        f"vllm:generation_tokens_total{theirs}": 3,
        f"vllm:num_preemptions_total{theirs}": 2,
        f"vllm:prefix_cache_queries_total{theirs}": 40,
        f"vllm:prefix_cache_hits_total{theirs}": 16,
        f"vllm:time_to_first_token_seconds_count{theirs}": 1,
        f"vllm:e2e_request_latency_seconds_sum{theirs}": 1.1,
        f"vllm:request_queue_time_seconds_sum{theirs}": 0.2,
        f"vllm:request_prefill_time_seconds_sum{theirs}": 0.3,
        f"vllm:request_decode_time_seconds_sum{theirs}": 0.6,
        f"vllm:request_inference_time_seconds_sum{theirs}": 0.9,
        f"vllm:request_time_per_output_token_seconds_sum{theirs}": 0.3,
        f"vllm:request_prompt_tokens_sum{theirs}": 40,
        f"vllm:request_prompt_tokens_count{theirs}": 2,
        f"vllm:request_generation_tokens_sum{theirs}": 3,
        f"vllm:request_params_max_tokens_sum{theirs}": 15,
        f"vllm:request_params_n_count{theirs}": 3,
        "vllm:request_success_total{engine=0,finished_reason=stop,model_name=m}": 1,
        "vllm:request_success_total{engine=0,finished_reason=abort,model_name=m}": 1,
        "vllm:request_success_total{engine=0,finished_reason=error,model_name=m}": 0,
        f"nv_inference_request_success_total{ours}": 1,
        f"nv_inference_exec_count_total{ours}": 4,
        f"nv_inference_queue_duration_us_total{ours}": 200_000,
        f"nv_inference_pending_request_count{ours}": 2,
        "nv_inference_request_failure_total{model=m,reason=CANCELED,version=1}": 1,
    }
    assert {name: samples[name] for name in expected} == pytest.approx(expected)
    bounds = [name for name in samples if name.startswith("vllm:request_prompt_tokens_bucket")]
    assert len(bounds) == len((1, 2, 5, 10, 20, 50, 100, 200, "+Inf"))


async def test_an_older_version_has_a_name_of_its_own() -> None:
    samples = scrape(RequestMetrics(), ToldEngine(LIMITS, 1).model, ToldEngine(LIMITS, 2).model)
    for name in ("m", "m@1"):
        assert samples[f"vllm:num_requests_running{{engine=0,model_name={name}}}"] == 0


def test_servers_without_such_models_have_none_of_it() -> None:
    assert not [name for name in scrape(RequestMetrics()) if "vllm" in name or "generation" in name]


async def test_models_that_generate_take_no_tensors_and_no_texts() -> None:
    model = ToldEngine(LIMITS).model
    with pytest.raises(UnsupportedError) as caught:
        batcher_of(model)
    for way in ("/v1/chat/completions", "/v1/completions", "GenerationService"):
        assert way in caught.value.message
    tokenizing = Tokenizing(threads=1)
    with pytest.raises(UnsupportedError, match="'m' generates text and takes no tensors"):
        await infer(tokenizing, model, InferRequest(model="m", inputs=[]))
    tokenizing.close()
    with pytest.raises(TaskNotSupportedError, match="it generates text: use /v1/chat/completions"):
        text_settings(model, fits=False, purpose="an embedding model")
