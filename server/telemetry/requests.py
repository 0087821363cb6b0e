"""Counts and durations of RPCs, kept as plain numbers that only the event loop changes."""

from __future__ import annotations

from typing import NamedTuple

from headrace.server.telemetry.statistics import LATENCY_BUCKETS, Histogram


class RequestLabels(NamedTuple):
    """What distinguishes one series; model, version and task are "" where no model was reached."""

    protocol: str
    method: str
    model: str
    version: str
    task: str


class RequestMetrics:
    """How many requests ended with which status, and how long they took."""

    def __init__(self) -> None:
        """Start with no series."""
        self.counts: dict[tuple[RequestLabels, str], int] = {}
        self.durations: dict[RequestLabels, Histogram] = {}
        self.active = 0

    def ended(self, labels: RequestLabels, code: str, seconds: float) -> None:
        """Count one request that ended with gRPC status ``code`` after ``seconds``."""
        key = (labels, code)
        self.counts[key] = self.counts.get(key, 0) + 1
        histogram = self.durations.get(labels)
        if histogram is None:
            histogram = self.durations[labels] = Histogram(LATENCY_BUCKETS)
        histogram.observe(seconds)
