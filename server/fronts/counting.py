"""What a front has counted since its last report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from headrace.server.telemetry.sums import Counts, take

if TYPE_CHECKING:
    from headrace.server.telemetry.generation import GenerationStatistics
    from headrace.server.telemetry.requests import RequestLabels, RequestMetrics
    from headrace.server.telemetry.statistics import ModelStatistics


class Totals(NamedTuple):
    """Counts of RPCs by their labels, and of models by their numbers."""

    series: dict[RequestLabels, Counts]
    models: dict[int, Counts]


def take_totals(
    requests: RequestMetrics, models: Mapping[int, ModelStatistics | GenerationStatistics]
) -> Totals:
    """Return everything that was counted, and begin anew."""
    series = {labels: counts for labels, counted in requests.series.items() if (counts := take(counted))}
    taken = {number: counts for number, counted in models.items() if (counts := take(counted))}
    return Totals(series, taken)
