"""What is counted of models that take text under Text Embeddings Inference's names."""

from __future__ import annotations

import pytest
from metric_samples import scrape
from tokenizers import Tokenizer, models

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.errors import (
    BatchTooLargeError,
    ExecutionFailedError,
    HeadraceError,
    InputTooLongError,
    InvalidJsonError,
    QueueFullError,
    TaskNotSupportedError,
)
from headrace.server.repository.model import Model, Task, TextSettings
from headrace.server.tasks.text_models import Timings
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestLabels, RequestMetrics
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.texts import DURATION_BUCKETS

MILLISECOND = 1_000_000


def text_model(name: str, task: Task, longest: int = 256) -> Model:
    return Model(
        name=name,
        version=1,
        task=task,
        platform="none",
        config=ModelConfig(),
        max_batch_size=8,
        inputs=(),
        outputs=(),
        batcher=None,
        statistics=ModelStatistics(),
        text=TextSettings(Tokenizer(models.WordLevel({"a": 0}, "a")), longest),
    )


def refuse(
    requests: RequestMetrics,
    error: type[HeadraceError] | None,
    *,
    model: str = "e",
    code: str = "INVALID_ARGUMENT",
    method: str = "Embed",
) -> None:
    labels = RequestLabels("tei", method, model, "1" if model else "", "embed" if model else "")
    requests.ended(labels, code, 0.1, error)


def test_requests_inputs_and_their_durations() -> None:
    model = text_model("e", Task.EMBED)
    texts = model.statistics.texts
    texts.observe_started(1)
    texts.observe_finished([5], Timings(8 * MILLISECOND, MILLISECOND, 2 * MILLISECOND, 4 * MILLISECOND))
    texts.observe_started(3)
    texts.observe_finished([1, 2, 9], Timings(20 * MILLISECOND, MILLISECOND, 0, 10 * MILLISECOND))
    found = scrape(RequestMetrics(), model)
    labels = "model=e,version=1"
    expected = {
        f"te_request_count_total{{method=single,{labels}}}": 1,
        f"te_request_count_total{{method=batch,{labels}}}": 1,
        f"te_request_success_total{{method=single,{labels}}}": 1,
        f"te_request_success_total{{method=batch,{labels}}}": 1,
        f"te_request_duration_sum{{{labels}}}": 0.028,
        f"te_request_duration_count{{{labels}}}": 2,
        f"te_request_tokenization_duration_sum{{{labels}}}": 0.002,
        f"te_request_queue_duration_sum{{{labels}}}": 0.002,
        f"te_request_inference_duration_sum{{{labels}}}": 0.014,
        f"te_request_input_length_sum{{{labels}}}": 17,
        f"te_request_input_length_count{{{labels}}}": 4,
        f"te_embed_count_total{{{labels}}}": 4,
        f"te_embed_success_total{{{labels}}}": 4,
        f"te_embed_duration_sum{{{labels}}}": 0.068,
        f"te_embed_duration_count{{{labels}}}": 4,
        f"te_embed_tokenization_duration_count{{{labels}}}": 4,
        f"te_embed_queue_duration_sum{{{labels}}}": 0.002,
        f"te_embed_inference_duration_sum{{{labels}}}": 0.034,
        f"te_queue_size{{{labels}}}": 0,
    }
    assert {name: found[_sorted(name)] for name in expected} == pytest.approx(expected)
    assert not [name for name in found if name.startswith("te_predict")]


@pytest.mark.parametrize("task", [Task.CLASSIFY, Task.RERANK])
def test_models_that_score_are_counted_as_predictions(task: Task) -> None:
    model = text_model("c", task)
    model.statistics.texts.observe_started(2)
    found = scrape(RequestMetrics(), model)
    assert found["te_predict_count_total{model=c,version=1}"] == 2
    assert found["te_predict_success_total{model=c,version=1}"] == 0
    assert not [name for name in found if name.startswith("te_embed")]


def test_counters_keep_their_names() -> None:
    text = Metrics(RequestMetrics(), lambda: [text_model("e", Task.EMBED)]).render().decode()
    assert '\nte_request_count{model="e",version="1",method="single"} 0\n' in text
    assert "te_request_count_total" not in text


def test_failures_by_their_cause() -> None:
    model = text_model("e", Task.EMBED)
    requests = RequestMetrics()
    texts = model.statistics.texts
    for error in (InputTooLongError, QueueFullError, ExecutionFailedError):  # inside the task
        texts.observe_started(1)
        texts.observe_failed()
        refuse(requests, error)
    refuse(requests, TaskNotSupportedError)  # before it
    refuse(requests, BatchTooLargeError)
    refuse(requests, BatchTooLargeError, model="")
    refuse(requests, InvalidJsonError)  # no request yet
    refuse(requests, InputTooLongError, method="Tokenize")  # runs no model
    refuse(requests, None, code="CANCELLED")
    found = scrape(requests, model)

    def failed(err: str, model: str, version: str) -> float:
        return found[f"te_request_failure_total{{err={err},model={model},version={version}}}"]

    counts = {
        err: failed(err, "e", "1")
        for err in (
            "validation", "batch_size", "overloaded", "model_type", "tokenization", "inference", "dropped",
            "missing_values",
        )
    }  # fmt: skip
    assert counts == {
        "validation": 1,
        "batch_size": 1,
        "overloaded": 1,
        "model_type": 1,
        "tokenization": 0,
        "inference": 1,
        "dropped": 1,
        "missing_values": 0,
    }
    assert failed("batch_size", "", "") == 1
    assert found["te_request_count_total{method=single,model=e,version=1}"] == 5
    assert found["te_request_count_total{method=batch,model=e,version=1}"] == 1
    assert found["te_request_count_total{method=batch,model=,version=}"] == 1


def test_batches() -> None:
    model = text_model("e", Task.EMBED)
    model.statistics.batch_executed(3, 100, "full", 1, 2, 3)
    model.statistics.batch_executed(3, 20, "idle", 1, 2, 3)
    model.statistics.batch_executed(1, 7, "idle", 1, 2, 3)
    found = scrape(RequestMetrics(), model)
    labels = "model=e,version=1"
    assert found[f"te_batch_next_size_sum{{{labels}}}"] == 7
    assert found[f"te_batch_next_size_bucket{{le=2.0,{labels}}}"] == 1
    assert found[f"te_batch_next_size_bucket{{le=4.0,{labels}}}"] == 3
    assert found[f"te_batch_next_tokens_sum{{{labels}}}"] == 127
    assert found[f"te_batch_next_tokens_bucket{{le=32.0,{labels}}}"] == 2


def test_buckets_are_those_of_the_router() -> None:
    model = text_model("e", Task.EMBED, longest=300)
    model.statistics.texts.observe_finished([300], Timings())
    found = scrape(RequestMetrics(), model)

    def bounds(name: str) -> list[float]:
        return [
            float(key.split("le=")[1].split(",")[0])
            for key in found
            if key.startswith(f"{name}_bucket{{") and "+Inf" not in key
        ]

    durations = bounds("te_request_duration")
    assert durations == bounds("te_embed_queue_duration") == list(DURATION_BUCKETS)
    assert len(durations) == 35
    assert durations[0] == pytest.approx(0.000015)
    assert bounds("te_request_input_length") == [2**power for power in range(9)]
    assert found["te_request_input_length_bucket{le=256.0,model=e,version=1}"] == 0
    assert found["te_request_input_length_count{model=e,version=1}"] == 1
    assert bounds("te_batch_next_size") == [2**power for power in range(13)]
    assert bounds("te_batch_next_tokens") == [2**power for power in range(21)]


def test_servers_without_such_models_have_none_of_it() -> None:
    assert "te_request" not in Metrics(RequestMetrics(), list).render().decode()


def _sorted(name: str) -> str:
    start, inside = name.rstrip("}").split("{")
    return f"{start}{{{','.join(sorted(inside.split(',')))}}}"
