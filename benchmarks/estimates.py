"""Arithmetic on measurements: rates, percentiles, medians over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """A span of the monotonic clock, in seconds; the clock is the same in every process of the machine."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin


def credited(starts: Times, ends: Times, window: Window, weights: Times | None = None) -> float:
    """Return how much work the window saw: each request counts for the part of its time that lies inside.

    Counting completions instead would depend on where bursts fall: 32 clients that wait for eight seconds
    each are answered almost together, and a window of six seconds sees 32 answers or none.

    Args:
        starts: when each request began.
        ends: when each was answered.
        window: the span that is measured.
        weights: what each request counts; 1 unless given.
    """
    if not len(starts):
        return 0.0
    inside = np.minimum(ends, window.end) - np.maximum(starts, window.begin)
    shares = np.clip(inside, 0.0, None) / np.maximum(ends - starts, 1e-9)
    return float(np.sum(shares if weights is None else shares * weights))


def latencies_ms(starts: Times, ends: Times, window: Window) -> Times:
    """Return the durations, in milliseconds, of requests that were under way in the window."""
    under_way = (ends > window.begin) & (starts < window.end)
    result: Times = (ends - starts)[under_way] * 1000.0
    return result


def percentile(values: Times, share: float) -> float:
    """Return the least value that ``share`` (in (0, 1]) of all values do not exceed; NaN for no values."""
    if not len(values):
        return float("nan")
    rank = max(0, int(np.ceil(share * len(values))) - 1)
    return float(np.partition(values, rank)[rank])


def ratio(value: float, before: float, after: float) -> float:
    """Relate a measurement to the mean of the references taken right before and right after it."""
    reference = (before + after) / 2
    return value / reference if reference > 0 else float("nan")


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that are there; None for none."""
    present = [value for value in values if value is not None]
    return median(present) if present else None
