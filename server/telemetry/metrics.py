"""The Prometheus exposition: our own families, and those of other servers under their names.

Nothing is counted here: the collector reads, at scrape time, the plain numbers that requests and batches
left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from headrace.server.telemetry.exposition import cumulative, labels, numbers
from headrace.server.telemetry.generation_metrics import generation_families
from headrace.server.telemetry.tei_metrics import tei_metrics
from headrace.server.telemetry.tgi_metrics import tgi_metrics

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.telemetry.requests import RequestMetrics
    from headrace.server.telemetry.statistics import ModelStatistics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_LABELS: Final = ("protocol", "method", "model", "version", "task")
_MODEL_LABELS: Final = ("model", "version")

_TRITON: Final[tuple[tuple[str, str, Callable[[ModelStatistics], int]], ...]] = (
    ("nv_inference_request_success", "Successful inference requests", lambda s: s.success.count),
    (
        "nv_inference_count",
        "Inferences performed (rows; cached ones not counted)",
        lambda s: s.inference_count,
    ),
    ("nv_inference_exec_count", "Model executions (batches)", lambda s: s.execution_count),
    (
        "nv_inference_request_duration_us",
        "Cumulative duration of successful requests in microseconds",
        lambda s: s.success.ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative time in the queue in microseconds",
        lambda s: s.queue.ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative time for preparing inputs in microseconds",
        lambda s: s.compute_input.ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time in the model in microseconds",
        lambda s: s.compute_infer.ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative time for outputs in microseconds",
        lambda s: s.compute_output.ns // 1000,
    ),
)


class Metrics:
    """Renders everything that is counted.

    Args:
        requests: counts of RPCs.
        models: returns the models that are loaded now.
        more: yields further families.
    """

    def __init__(
        self,
        requests: RequestMetrics,
        models: Callable[[], Sequence[Model]],
        more: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._requests = requests
        self._models = models
        self._more = more
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the whole exposition, Prometheus text format 0.0.4."""
        models = self._models()
        written = (
            _triton(models), tgi_metrics(models, self._requests), tei_metrics(models, self._requests)
        )  # fmt: skip
        return generate_latest(self._registry) + "".join(chain.from_iterable(written)).encode()

    def collect(self) -> Iterator[Metric]:
        """Yield our own families (called by the Prometheus library)."""
        requests = CounterMetricFamily(
            "headrace_requests", "RPCs by final gRPC status", labels=(*_REQUEST_LABELS, "code")
        )
        durations = HistogramMetricFamily(
            "headrace_request_duration_seconds", "Duration of RPCs", labels=_REQUEST_LABELS
        )
        for key, series in self._requests.series.items():
            for code, count in series.codes.items():
                requests.add_metric((*key, code), count)
            durations.add_metric(key, cumulative(series.durations), series.durations.total)
        active = GaugeMetricFamily("headrace_requests_active", "RPCs under way")
        active.add_metric((), self._requests.active)
        yield from (requests, durations, active)
        models = self._models()
        yield from _model_families(models)
        yield from generation_families(models)
        yield from self._more()


def _model_families(models: Sequence[Model]) -> Iterable[Metric]:
    queue = HistogramMetricFamily(
        "headrace_queue_seconds", "Time requests waited for a worker", labels=_MODEL_LABELS
    )
    compute = HistogramMetricFamily(
        "headrace_compute_seconds", "Time a worker spent on a batch", labels=_MODEL_LABELS
    )
    rows = HistogramMetricFamily("headrace_batch_rows", "Rows in executed batches", labels=_MODEL_LABELS)
    closed = CounterMetricFamily(
        "headrace_batches", "Batches by why they were closed", labels=(*_MODEL_LABELS, "reason")
    )
    waiting = GaugeMetricFamily("headrace_queue_size", "Parts waiting in the queue", labels=_MODEL_LABELS)
    restarts = CounterMetricFamily(
        "headrace_worker_restarts", "Worker processes restarted", labels=_MODEL_LABELS
    )
    for model in models:
        labels = (model.name, str(model.version))
        statistics = model.statistics
        for family, histogram in (
            (queue, statistics.queue_seconds),
            (compute, statistics.compute_seconds),
            (rows, statistics.batch_rows),
        ):
            family.add_metric(labels, cumulative(histogram), histogram.total)
        for reason, count in statistics.close_reasons.items():
            closed.add_metric((*labels, reason), count)
        waiting.add_metric(labels, model.waiting)
        restarts.add_metric(labels, statistics.restarts)
    return queue, compute, rows, closed, waiting, restarts


def _triton(models: Sequence[Model]) -> Iterator[str]:
    """Write Triton's families."""
    given = [
        (labels({"model": model.name, "version": str(model.version)}), model.statistics) for model in models
    ]
    for name, text, value in _TRITON:
        yield from numbers("counter", name, text, [(each, value(counted)) for each, counted in given])
    name = "nv_inference_request_failure"
    failed = [
        (f'{each},reason="{reason}"', count)
        for each, counted in given
        for reason, count in counted.failures.items()
    ]
    yield from numbers("counter", name, "Failed inference requests by reason", failed)
    name = "nv_inference_pending_request_count"
    pending = [(each, counted.pending) for each, counted in given]
    yield from numbers("gauge", name, "Requests admitted and not answered", pending)
