"""Plain numbers to what the Prometheus library takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.server.telemetry.statistics import Histogram


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Turn counts per bucket into Prometheus' cumulative ones."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
