"""Counters that one process counts and another adds up.

Counters are objects of numbers, histograms and further counters, named by their ``__slots__``. What was
counted travels as plain values and only where it is not zero, so that a report of an idle model is empty.
"""

from __future__ import annotations

from typing import Any

from headrace.server.telemetry.histogram import Histogram

Counts = dict[str, Any]
"""Name → number, ``{key: number}``, (total, {bucket: count}) of a histogram, or counts of an object."""


def take(counters: object) -> Counts:
    """Return what ``counters`` have counted since this was last called, and set them to zero in place.

    They are zeroed and not replaced: a request that is under way counts its end in the same object.
    """
    taken: Counts = {}
    for name in _names(counters):
        value = getattr(counters, name)
        if isinstance(value, (int, float)):
            counted: Any = value
            setattr(counters, name, type(value)())
        elif isinstance(value, Histogram):
            counted = _take_histogram(value)
        elif isinstance(value, dict):
            counted = {key: number for key, number in value.items() if number}
            value.update(dict.fromkeys(value, 0))
        else:
            counted = take(value)
        if counted:
            taken[name] = counted
    return taken


def add(counters: object, counts: Counts) -> None:
    """Add what :func:`take` returned for counters of the same kind."""
    for name, counted in counts.items():
        value = getattr(counters, name)
        if isinstance(value, (int, float)):
            setattr(counters, name, value + counted)
        elif isinstance(value, Histogram):
            total, buckets = counted
            value.total += total
            for bucket, count in buckets.items():
                value.counts[bucket] += count
        elif isinstance(value, dict):
            for key, number in counted.items():
                value[key] = value.get(key, 0) + number
        else:
            add(value, counted)


def _take_histogram(histogram: Histogram) -> tuple[float, dict[int, int]] | None:
    buckets = {bucket: count for bucket, count in enumerate(histogram.counts) if count}
    if not buckets:
        return None
    total = histogram.total
    histogram.counts[:] = [0] * len(histogram.counts)
    histogram.total = 0.0
    return total, buckets


def _names(counters: object) -> tuple[str, ...]:
    names: tuple[str, ...] = type(counters).__slots__  # type: ignore[attr-defined] # all counters have slots
    return names
