"""Counts and durations of RPCs, kept as plain numbers that only the event loop changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.server.telemetry.histogram import Histogram
from headrace.server.telemetry.statistics import LATENCY_BUCKETS

if TYPE_CHECKING:
    from headrace.server.errors import HeadraceError


class RequestLabels(NamedTuple):
    """What distinguishes one series; model, version and task are "" where no model was reached."""

    protocol: str
    method: str
    model: str
    version: str
    task: str


class Series:
    """Requests of one set of labels: how many ended with which status and error, and how long it took."""

    __slots__ = ("codes", "durations", "errors")

    def __init__(self) -> None:
        """Start with none."""
        self.codes: dict[str, int] = {}
        self.errors: dict[type[HeadraceError], int] = {}
        self.durations = Histogram(LATENCY_BUCKETS)


class RequestMetrics:
    """All series of requests, and how many requests are under way."""

    def __init__(self) -> None:
        """Start with no series."""
        self.series: dict[RequestLabels, Series] = {}
        self.active = 0

    def ended(
        self, labels: RequestLabels, code: str, seconds: float, error: type[HeadraceError] | None = None
    ) -> None:
        """Count one request that ended with gRPC status ``code`` after ``seconds``, and with what error."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = Series()
        series.codes[code] = series.codes.get(code, 0) + 1
        series.durations.observe(seconds)
        if error is not None:
            series.errors[error] = series.errors.get(error, 0) + 1
