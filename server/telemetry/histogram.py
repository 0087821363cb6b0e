"""Bucketed counts, cheap enough for the event loop."""

from __future__ import annotations

from bisect import bisect_left


class Histogram:
    """Bucketed observations; ``counts`` has one entry per bound and one for everything above."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Use these upper bounds, ascending."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count ``count`` observations of ``value``."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count
