"""Counters of one model version: plain integers that only the event loop changes.

They are read by ``ModelStatistics`` and, at scrape time, by the metrics collector, so that counting costs a
request a few additions. Meaning of the fields: ``reference`` Triton statistics extension; durations are
nanoseconds, sizes are rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from headrace.server.telemetry.histogram import Histogram
from headrace.server.telemetry.texts import TextStatistics

LATENCY_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
TOKEN_BUCKETS: Final = tuple(2.0**power for power in range(21))
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count ``count`` more events that took ``ns`` nanoseconds together."""
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ModelStatistics:
    """All counters of one model version since it was loaded."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    restarts: int = 0
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    failures: dict[str, int] = field(
        default_factory=lambda: {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    )
    close_reasons: dict[str, int] = field(default_factory=dict)
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_BUCKETS))  # of texts
    texts: TextStatistics = field(default_factory=TextStatistics)

    def batch_executed(
        self, rows: int, tokens: int, reason: str, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count one executed batch of ``rows`` rows closed for ``reason``; ``tokens`` are those of texts."""
        self.execution_count += 1
        self.inference_count += rows
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.close_reasons[reason] = self.close_reasons.get(reason, 0) + 1
        batch = self.batches.setdefault(rows, BatchStatistics())
        batch.compute_input.add(input_ns)
        batch.compute_infer.add(infer_ns)
        batch.compute_output.add(output_ns)
        self.batch_rows.observe(rows)
        if tokens:
            self.batch_tokens.observe(tokens)
        self.compute_seconds.observe((input_ns + infer_ns + output_ns) * 1e-9)

    def failed(self, ns: int, reason: str) -> None:
        """Count one failed request; ``reason`` is REJECTED, CANCELED, BACKEND or OTHER."""
        self.fail.add(ns)
        self.failures[reason] += 1
