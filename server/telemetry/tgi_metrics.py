"""Text Generation Inference's metrics, with its names, buckets and units, of all models that generate.

Source: TGI 3.3, ``/metrics`` and its Grafana dashboard. Here a server has several models, so each name has
the labels ``model`` and ``version`` besides its own. Requests of every protocol are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.server.errors import (
    ChatTemplateError,
    InvalidArgumentError,
    InvalidJsonError,
    RequestRefusedError,
    TaskNotSupportedError,
    UnsupportedError,
)
from headrace.server.repository.model import Task
from headrace.server.telemetry.exposition import histograms, labels, numbers
from headrace.server.telemetry.failures import failures
from headrace.server.telemetry.histogram import Histogram
from headrace.server.telemetry.tgi import StepStatistics, TgiStatistics

if TYPE_CHECKING:
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.generator import Generator
    from headrace.server.telemetry.generation import GenerationStatistics
    from headrace.server.telemetry.requests import RequestMetrics


@dataclass(frozen=True, slots=True)
class _Served:
    """A model version at scrape time."""

    model: str
    version: str
    generator: Generator
    statistics: GenerationStatistics
    refused: dict[str, int]  # before an engine saw the request, by ``err``

    def labels(self, **more: str) -> str:
        return labels({"model": self.model, "version": self.version, **more})

    @property
    def failures(self) -> dict[str, int]:
        counted = self.statistics
        return {
            "overloaded": counted.refused,
            "validation": self.refused.get("validation", 0) + counted.rejected,
            "template": self.refused.get("template", 0),
            "incomplete": 0,  # a stream is never ended without its last event
            "generation": counted.finished["error"] - counted.rejected,
            "dropped": counted.finished["abort"],
        }

    @property
    def success(self) -> int:
        return self.statistics.finished["stop"] + self.statistics.finished["length"]

    @property
    def count(self) -> int:
        """Requests: what engines were given, and what was refused before."""
        return (
            sum(self.statistics.tgi.max_new_tokens.counts)
            + self.statistics.refused
            + sum(self.refused.values())
        )

    def tokens(self, blocks: Callable[[int, int], int]) -> int:
        """Sum ``blocks`` of (all, free) over the engines, in tokens."""
        found = sum(blocks(entry.total_blocks, entry.free_blocks) for entry in self.generator.stats)
        return found * self.statistics.tgi.block_tokens


_CAUSES: Final[tuple[tuple[type[HeadraceError], str], ...]] = (
    (InvalidJsonError, ""),
    (RequestRefusedError, ""),
    (ChatTemplateError, "template"),
    (InvalidArgumentError, "validation"),
    (TaskNotSupportedError, "validation"),
    (UnsupportedError, "validation"),
)

_NUMBERS: Final[tuple[tuple[str, str, str, Callable[[_Served], float]], ...]] = (
    ("counter", "tgi_request_count", "Requests", lambda s: s.count),
    ("counter", "tgi_request_success", "Requests that were answered", lambda s: s.success),
    ("gauge", "tgi_queue_size", "Requests that no engine has started", lambda s: s.generator.waiting),
    (
        "gauge",
        "tgi_batch_current_size",
        "Sequences that run",
        lambda s: sum(entry.running for entry in s.generator.stats),
    ),
    (
        "gauge",
        "tgi_batch_current_max_tokens",
        "Tokens that the memory of the running sequences has room for",
        lambda s: s.tokens(lambda total, free: total - free),
    ),
    (
        "gauge",
        "tgi_batch_max_total_tokens",
        "Tokens that the memory of all sequences has room for",
        lambda s: s.tokens(lambda total, _: total),
    ),
)

_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[TgiStatistics], Histogram]], ...]] = (
    ("tgi_request_duration", "Seconds from arrival to end", lambda t: t.seconds),
    ("tgi_request_validation_duration", "Seconds of checks and tokenising", lambda t: t.validation_seconds),
    ("tgi_request_queue_duration", "Seconds from there to the start", lambda t: t.queue_seconds),
    ("tgi_request_inference_duration", "Seconds from the start to the end", lambda t: t.inference_seconds),
    (
        "tgi_request_mean_time_per_token_duration",
        "Seconds of inference for each token",
        lambda t: t.per_token_seconds,
    ),
    ("tgi_request_input_length", "Tokens of a prompt", lambda t: t.input_lengths),
    ("tgi_request_generated_tokens", "Tokens generated for a request", lambda t: t.generated_tokens),
    ("tgi_request_max_new_tokens", "Tokens that a request may get", lambda t: t.max_new_tokens),
    ("tgi_batch_next_size", "Requests that begin together", lambda t: t.next_sizes),
)

_STEPS: Final[tuple[tuple[str, str, Callable[[StepStatistics], int]], ...]] = (
    ("tgi_batch_inference_count", "Steps", lambda s: s.steps),
    ("tgi_batch_inference_success", "Steps that did not fail", lambda s: s.steps - s.failed),
    ("tgi_batch_inference_failure", "Steps that failed", lambda s: s.failed),
)
_STEP_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[StepStatistics], Histogram]], ...]] = (
    ("tgi_batch_inference_duration", "Seconds of a step", lambda s: s.seconds),
    ("tgi_batch_forward_duration", "Seconds of the model in a step", lambda s: s.forward_seconds),
    ("tgi_batch_decode_duration", "Seconds from its logits to tokens", lambda s: s.choice_seconds),
)
_NEVER: Final = (
    ("tgi_batch_filter_duration", "Seconds of taking requests out of a batch"),
    ("tgi_batch_concat_duration", "Seconds of joining batches"),
)
"""A batch is formed anew for every step, so these have no samples."""


def tgi_metrics(models: Sequence[Model], requests: RequestMetrics) -> Iterator[str]:
    """Write the families of all models that generate; none when there is no such model."""
    refused = failures(requests.series, (Task.GENERATE,), (), _cause)
    served = [
        _Served(
            model.name,
            str(model.version),
            model.generator,
            model.generator.statistics,
            refused.get((model.name, str(model.version)), {}),
        )
        for model in models
        if model.generator is not None
    ]
    if not served:
        return
    for kind, name, text, value in _NUMBERS:
        yield from numbers(kind, name, text, [(each.labels(), value(each)) for each in served])
    yield from _failures(served)
    for name, text, histogram in _HISTOGRAMS:
        samples = [(each.labels(), histogram(each.statistics.tgi)) for each in served]
        yield from histograms(name, text, samples)
    name = "tgi_request_skipped_tokens"
    text = "Tokens of a step beyond its first, by guessing"
    yield from histograms(name, text, [(each.labels(), _skipped(each.statistics)) for each in served])
    methods = [
        (each.labels(method=method), steps)
        for each in served
        for method, steps in (
            ("prefill", each.statistics.tgi.prefill),
            ("decode", each.statistics.tgi.decode),
        )
    ]
    for name, text, count in _STEPS:
        yield from numbers("counter", name, text, [(given, count(steps)) for given, steps in methods])
    for name, text, histogram_of in _STEP_HISTOGRAMS:
        yield from histograms(name, text, [(given, histogram_of(steps)) for given, steps in methods])
    for name, text in _NEVER:
        yield from histograms(name, text, ())
    yield from numbers("counter", "tgi_batch_concat", "Batches joined to the running one", ())


def _failures(served: Sequence[_Served]) -> Iterator[str]:
    samples = [(each.labels(err=err), count) for each in served for err, count in each.failures.items()]
    yield from numbers("counter", "tgi_request_failure", "Requests that were not answered", samples)


def _cause(error: type[HeadraceError]) -> str:
    """Name what refused a request; "" for what is counted elsewhere, or before there is a request."""
    return next((name for known, name in _CAUSES if issubclass(error, known)), "")


def _skipped(statistics: GenerationStatistics) -> Histogram:
    """Complete the histogram of steps that guessed: all others gave one token."""
    guessed = statistics.tgi.skipped_tokens
    full = Histogram(guessed.bounds)
    several = sum((tokens + 1) * count for tokens, count in enumerate(guessed.counts) if tokens)
    full.counts[:] = [statistics.generated_tokens - several, *guessed.counts[1:]]
    full.total = guessed.total
    return full
