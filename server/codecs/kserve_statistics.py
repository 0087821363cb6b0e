"""Counters of models as Triton's statistics extension has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from headrace.kserve.v2.grpc_service_pb2 import (
    InferBatchStatistics,
    InferStatistics,
    ModelStatistics,
    ModelStatisticsResponse,
    StatisticDuration,
)
from headrace.server.codecs.kserve_messages import to_plain

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.telemetry.statistics import Duration


def encode_statistics(models: Iterable[Model]) -> ModelStatisticsResponse:
    """Encode the statistics of ``models``; batch sizes ascend."""
    return ModelStatisticsResponse(model_stats=[_model(model) for model in models])


def statistics_json(response: ModelStatisticsResponse) -> dict[str, Any]:
    """Return the REST form, whose members are in another order than the message's fields."""
    return {"model_stats": [_reordered(to_plain(entry)) for entry in response.model_stats]}


def _reordered(entry: dict[str, Any]) -> dict[str, Any]:
    responses = entry.pop("response_stats")
    batches, memory = entry.pop("batch_stats"), entry.pop("memory_usage")
    return {**entry, "response_stats": responses, "batch_stats": batches, "memory_usage": memory}


def _model(model: Model) -> ModelStatistics:
    counters = model.statistics
    return ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counters.last_inference_ms,
        inference_count=counters.inference_count,
        execution_count=counters.execution_count,
        inference_stats=InferStatistics(
            success=_duration(counters.success),
            fail=_duration(counters.fail),
            queue=_duration(counters.queue),
            compute_input=_duration(counters.compute_input),
            compute_infer=_duration(counters.compute_infer),
            compute_output=_duration(counters.compute_output),
            cache_hit=_duration(counters.cache_hit),
            cache_miss=_duration(counters.cache_miss),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for rows, batch in sorted(counters.batches.items())
        ],
    )


def _duration(duration: Duration) -> StatisticDuration:
    return StatisticDuration(count=duration.count, ns=duration.ns)
