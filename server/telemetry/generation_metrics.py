"""Prometheus families of models that generate text: our own, and vLLM's names for its dashboards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from headrace.server.telemetry.exposition import cumulative

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.generator import Generator
    from headrace.server.telemetry.generation import GenerationStatistics
    from headrace.server.telemetry.histogram import Histogram


class Engines(NamedTuple):
    """One model version at scrape time; the numbers of its engines are summed."""

    statistics: GenerationStatistics
    running: int
    waiting: int
    free_slots: int
    used_blocks: int
    total_blocks: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int


_OUR_LABELS: Final = ("model", "version")
_THEIR_LABELS: Final = ("model_name", "engine")
_Value = Callable[[Engines], float]

_GAUGES: Final[tuple[tuple[str, str, str, _Value], ...]] = (
    (
        "headrace_generation_requests_running",
        "vllm:num_requests_running",
        "Requests that an engine computes",
        lambda e: e.running,
    ),
    (
        "headrace_generation_requests_waiting",
        "vllm:num_requests_waiting",
        "Requests that no engine has started",
        lambda e: e.waiting,
    ),
    (
        "headrace_generation_slots_free",
        "",
        "Sequences that could run beside those that do",
        lambda e: e.free_slots,
    ),
    ("headrace_kv_blocks", "", "Blocks of the KV cache", lambda e: e.total_blocks),
    (
        "headrace_kv_blocks_used",
        "",
        "Blocks of the KV cache that running sequences hold",
        lambda e: e.used_blocks,
    ),
    (
        "",
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache that running sequences hold, 0 to 1",
        lambda e: e.used_blocks / e.total_blocks if e.total_blocks else 0.0,
    ),
)
"""(our name, vLLM's, text, value); a name may be missing."""

_COUNTERS: Final[tuple[tuple[str, str, str, _Value], ...]] = (
    (
        "headrace_prompt_tokens",
        "vllm:prompt_tokens",
        "Prompt tokens of requests that were started",
        lambda e: e.statistics.prompt_tokens,
    ),
    (
        "headrace_prompt_tokens_cached",
        "vllm:prompt_tokens_cached",
        "Those of them that were found in the prefix cache",
        lambda e: e.statistics.cached_tokens,
    ),
    (
        "headrace_generated_tokens",
        "vllm:generation_tokens",
        "Tokens generated",
        lambda e: e.statistics.generated_tokens,
    ),
    (
        "headrace_preemptions",
        "vllm:num_preemptions",
        "Sequences that gave their memory to others and were computed again",
        lambda e: e.preemptions,
    ),
    (
        "headrace_prefix_cache_queries",
        "vllm:prefix_cache_queries",
        "Tokens looked up in the prefix cache",
        lambda e: e.prefix_queries,
    ),
    (
        "headrace_prefix_cache_hits",
        "vllm:prefix_cache_hits",
        "Tokens found in the prefix cache",
        lambda e: e.prefix_hits,
    ),
    (
        "headrace_generation_requests_refused",
        "",
        "Requests that found the queue full",
        lambda e: e.statistics.refused,
    ),
)

_HISTOGRAMS: Final[tuple[tuple[str, str, str, Callable[[GenerationStatistics], Histogram]], ...]] = (
    (
        "headrace_first_token_seconds",
        "vllm:time_to_first_token_seconds",
        "Arrival to first token",
        lambda s: s.first_token_seconds,
    ),
    (
        "headrace_inter_token_seconds",
        "vllm:inter_token_latency_seconds",
        "Time between the tokens of a sequence",
        lambda s: s.inter_token_seconds,
    ),
    (
        "",
        "vllm:request_time_per_output_token_seconds",
        "Mean time of a request's tokens after the first",
        lambda s: s.per_token_seconds,
    ),
    ("", "vllm:e2e_request_latency_seconds", "Arrival to end", lambda s: s.e2e_seconds),
    ("", "vllm:request_queue_time_seconds", "Arrival to start", lambda s: s.queue_seconds),
    ("", "vllm:request_inference_time_seconds", "Start to end", lambda s: s.inference_seconds),
    ("", "vllm:request_prefill_time_seconds", "Start to first token", lambda s: s.prefill_seconds),
    ("", "vllm:request_decode_time_seconds", "First token to end", lambda s: s.decode_seconds),
    ("", "vllm:request_prompt_tokens", "Prompt tokens of a request", lambda s: s.prompt_lengths),
    ("", "vllm:request_generation_tokens", "Tokens generated for a request", lambda s: s.output_tokens),
    ("", "vllm:request_params_max_tokens", "max_tokens as requests asked", lambda s: s.max_tokens),
    ("", "vllm:request_params_n", "n as requests asked", lambda s: s.samples),
)


class _Row(NamedTuple):
    """A model version with the label values of our families and of vLLM's."""

    ours: tuple[str, str]
    theirs: tuple[str, str]
    engines: Engines


def generation_families(models: Sequence[Model]) -> Iterator[Metric]:
    """Yield the families of all models that generate; none when there is no such model."""
    rows = _rows(models)
    if rows:
        yield from _numbers(rows, GaugeMetricFamily, _GAUGES)
        yield from _numbers(rows, CounterMetricFamily, _COUNTERS)
        yield from _histograms(rows)
        yield _success(rows)


def _rows(models: Sequence[Model]) -> list[_Row]:
    # One label stands for a model with vLLM: older versions go by the name that requests give them.
    newest = {model.name: model.version for model in models}
    rows: list[_Row] = []
    for model in models:
        if model.generator is not None:
            name = model.name if newest[model.name] == model.version else f"{model.name}@{model.version}"
            rows.append(_Row((model.name, str(model.version)), (name, "0"), _engines(model.generator)))
    return rows


def _numbers(
    rows: Sequence[_Row],
    create: type[GaugeMetricFamily | CounterMetricFamily],
    table: Sequence[tuple[str, str, str, _Value]],
) -> Iterator[Metric]:
    for ours, theirs, text, value in table:
        if ours:
            family = create(ours, text, labels=_OUR_LABELS)
            for row in rows:
                family.add_metric(row.ours, value(row.engines))
            yield family
        if theirs:
            family = create(theirs, text, labels=_THEIR_LABELS)
            for row in rows:
                family.add_metric(row.theirs, value(row.engines))
            yield family


def _histograms(rows: Sequence[_Row]) -> Iterator[Metric]:
    for ours, theirs, text, histogram_of in _HISTOGRAMS:
        found = [(row, histogram_of(row.engines.statistics)) for row in rows]
        if ours:
            family = HistogramMetricFamily(ours, text, labels=_OUR_LABELS)
            for row, histogram in found:
                family.add_metric(row.ours, cumulative(histogram), histogram.total)
            yield family
        if theirs:
            family = HistogramMetricFamily(theirs, text, labels=_THEIR_LABELS)
            for row, histogram in found:
                family.add_metric(row.theirs, cumulative(histogram), histogram.total)
            yield family


def _success(rows: Sequence[_Row]) -> Metric:
    labels = (*_THEIR_LABELS, "finished_reason")
    family = CounterMetricFamily("vllm:request_success", "Requests that ended", labels=labels)
    for row in rows:
        for reason, count in row.engines.statistics.finished.items():
            family.add_metric((*row.theirs, reason), count)
    return family


def _engines(generator: Generator) -> Engines:
    stats = generator.stats
    total = sum(entry.total_blocks for entry in stats)
    return Engines(
        statistics=generator.statistics,
        running=generator.running,
        waiting=generator.waiting,
        free_slots=sum(entry.free_slots for entry in stats),
        used_blocks=total - sum(entry.free_blocks for entry in stats),
        total_blocks=total,
        preemptions=sum(entry.preemptions for entry in stats),
        prefix_queries=sum(entry.prefix_queries for entry in stats),
        prefix_hits=sum(entry.prefix_hits for entry in stats),
    )
