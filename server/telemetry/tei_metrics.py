"""Text Embeddings Inference's metrics, with its names, buckets and units, of all models that take text.

Source: TEI 1.9, ``/metrics``. A server has several models here, so each name has the labels ``model`` and
``version`` besides its own; both are empty for requests that reached no model. Texts of every protocol are
counted: those of an embedding model under ``te_embed_*``, those of the others under ``te_predict_*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.server.errors import (
    BatchTooLargeError,
    CancelledError,
    DeadlineExceededError,
    ExecutionFailedError,
    InvalidArgumentError,
    InvalidJsonError,
    QueueFullError,
    TaskNotSupportedError,
    WorkerCrashedError,
)
from headrace.server.repository.model import Task
from headrace.server.telemetry.exposition import histograms, labels, numbers
from headrace.server.telemetry.failures import failures
from headrace.server.telemetry.histogram import Histogram

if TYPE_CHECKING:
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.telemetry.requests import RequestMetrics
    from headrace.server.telemetry.statistics import ModelStatistics
    from headrace.server.telemetry.texts import Durations, TextStatistics

TASKS: Final = (Task.EMBED, Task.CLASSIFY, Task.RERANK)
PROTOCOLS: Final = ("tei", "tei-grpc")
SIZE_BUCKETS: Final = tuple(2.0**power for power in range(13))

_CAUSES: Final[tuple[tuple[type[HeadraceError], str], ...]] = (
    (InvalidJsonError, ""),  # refused before there is a request
    (BatchTooLargeError, "batch_size"),
    (InvalidArgumentError, "validation"),
    (TaskNotSupportedError, "model_type"),
    (QueueFullError, "overloaded"),
    (ExecutionFailedError, "inference"),
    (WorkerCrashedError, "inference"),
    (DeadlineExceededError, "dropped"),
    (CancelledError, "dropped"),
)
_ERRORS: Final = (
    "validation", "batch_size", "overloaded", "model_type", "tokenization", "inference", "dropped",
    "missing_values",
)  # fmt: skip

_DURATIONS: Final[tuple[tuple[str, str, Callable[[Durations], Histogram]], ...]] = (
    ("duration", "Seconds from texts to the answer", lambda d: d.total),
    ("tokenization_duration", "Seconds of tokenising", lambda d: d.tokenization),
    ("queue_duration", "Seconds in the queue", lambda d: d.queue),
    ("inference_duration", "Seconds in the model", lambda d: d.inference),
)


@dataclass(frozen=True, slots=True)
class _Served:
    """A model version at scrape time; no model for requests that reached none."""

    model: str
    version: str
    task: Task | None
    statistics: ModelStatistics | None
    longest: int
    waiting: int
    failures: dict[str, int]

    def labels(self, **more: str) -> str:
        return labels({"model": self.model, "version": self.version, **more})

    def count(self, method: str) -> int:
        """Requests of one input or of several; those that were refused before they were counted included."""
        oversize = self.failures.get("batch_size", 0)
        texts = self.statistics.texts if self.statistics is not None else None
        if method == "batch":
            return (texts.batches if texts else 0) + oversize
        refused = sum(self.failures.values()) - oversize - (texts.failures if texts else 0)
        return (texts.singles if texts else 0) + max(0, refused)


def tei_metrics(models: Sequence[Model], requests: RequestMetrics) -> Iterator[str]:
    """Write the families of all models that take text; none when there is no such model."""
    failed = failures(requests.series, TASKS, PROTOCOLS, _cause)
    served = [
        _Served(
            model.name,
            str(model.version),
            model.task,
            model.statistics,
            model.text.max_tokens,
            model.waiting,
            failed.get((model.name, str(model.version)), {}),
        )
        for model in models
        if model.text is not None
    ]
    if not served:
        return
    lost = failed.get(("", ""), {})
    everyone = [*served, _Served("", "", None, None, 0, 0, lost)] if lost else served
    counts = [(each.labels(method=way), each.count(way)) for each in everyone for way in ("single", "batch")]
    yield from numbers("counter", "te_request_count", "Requests", counts)
    known = [(each, each.statistics) for each in served if each.statistics is not None]
    done = [
        sample
        for each, statistics in known
        for sample in (
            (each.labels(method="single"), statistics.texts.single_successes),
            (each.labels(method="batch"), statistics.texts.batch_successes),
        )
    ]
    yield from numbers("counter", "te_request_success", "Requests that were answered", done)
    errors = [(each.labels(err=err), each.failures.get(err, 0)) for each in everyone for err in _ERRORS]
    yield from numbers("counter", "te_request_failure", "Requests that were not answered", errors)
    for name, text, histogram in _DURATIONS:
        samples = [(each.labels(), histogram(statistics.texts.requests)) for each, statistics in known]
        yield from histograms(f"te_request_{name}", text, samples)
    lengths = [(each.labels(), _up_to(statistics.texts.lengths, each.longest)) for each, statistics in known]
    yield from histograms("te_request_input_length", "Tokens of an input", lengths)
    for kind in ("embed", "predict"):
        texts = [
            (each.labels(), statistics.texts)
            for each, statistics in known
            if (each.task is Task.EMBED) is (kind == "embed")
        ]
        if texts:
            yield from _inputs(kind, texts)
    sizes = [(each.labels(), _sizes(statistics)) for each, statistics in known]
    yield from histograms("te_batch_next_size", "Texts of a batch", sizes)
    tokens = [(each.labels(), statistics.batch_tokens) for each, statistics in known]
    yield from histograms("te_batch_next_tokens", "Tokens of a batch", tokens)
    waiting = [(each.labels(), each.waiting) for each in served]
    yield from numbers("gauge", "te_queue_size", "Texts that wait", waiting)


def _inputs(kind: str, texts: Sequence[tuple[str, TextStatistics]]) -> Iterator[str]:
    """Write what is counted of single inputs, by what the model does."""
    started = [(given, counted.inputs) for given, counted in texts]
    yield from numbers("counter", f"te_{kind}_count", "Inputs", started)
    answered = [(given, counted.input_successes) for given, counted in texts]
    yield from numbers("counter", f"te_{kind}_success", "Inputs that were answered", answered)
    for name, text, histogram in _DURATIONS:
        samples = [(given, histogram(counted.per_input)) for given, counted in texts]
        yield from histograms(f"te_{kind}_{name}", text, samples)


def _cause(error: type[HeadraceError]) -> str:
    return next((name for known, name in _CAUSES if issubclass(error, known)), "")


def _up_to(lengths: Histogram, longest: int) -> Histogram:
    """Leave out the buckets above the longest input of the model."""
    kept = Histogram(tuple(bound for bound in lengths.bounds if bound <= longest))
    last = len(kept.bounds)
    kept.counts[:] = [*lengths.counts[:last], sum(lengths.counts[last:])]
    kept.total = lengths.total
    return kept


def _sizes(statistics: ModelStatistics) -> Histogram:
    """Read the sizes of the batches off the counts that are kept for each of them."""
    sizes = Histogram(SIZE_BUCKETS)
    for rows, batches in statistics.batches.items():
        sizes.observe(rows, batches.compute_infer.count)
    return sizes
