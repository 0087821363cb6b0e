"""What a soak leaves behind: plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.soak.plan import EVERYBODY


@dataclass(slots=True)
class SoakResult:
    """One soak.

    Attributes:
        name: of the scenario.
        title: one line for people.
        callers: that asked without a break.
        minutes: how long.
        warmup: share of the time before memory is looked at.
        seconds: when memory was read, from the beginning.
        rss: MiB that each group of processes had then.
        kills: seconds at which a worker was killed.
        workers: processes that there were in the beginning.
        workers_left: the same in the end.
        counts: requests by what became of them.
        refused: of them those that were refused, by status.
        errors: the first texts of what should not have happened.
        unanswered: requests without an answer.
        failed: answers that are neither good nor a refusal.
        verified: what a comparison with the bare model said afterwards.
    """

    name: str
    title: str
    callers: int
    minutes: float
    warmup: float
    seconds: list[float] = field(default_factory=list)
    rss: dict[str, list[float]] = field(default_factory=dict)
    kills: list[float] = field(default_factory=list)
    workers: int = 0
    workers_left: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    unanswered: int = 0
    failed: int = 0
    verified: str = ""

    def cells(self) -> dict[tuple[str, str, int], Mapping[str, float | None]]:
        """Return what bars are about."""
        metrics: dict[str, float | None] = {
            "rss_growth": self.growth(self.total()),
            "server_rss_growth": self.growth(self.rss.get("server", [])),
            "unanswered": float(self.unanswered),
            "failed": float(self.failed),
        }
        return {(self.name, EVERYBODY, self.callers): metrics}

    def total(self) -> list[float]:
        """Return MiB of all groups together, reading by reading."""
        return [sum(values) for values in zip(*self.rss.values(), strict=True)]

    def growth(self, values: Sequence[float]) -> float | None:
        """Relate the last quarter of what comes after warming up to the first; None for too few readings."""
        after = values[int(len(values) * self.warmup) :]
        quarter = len(after) // 4
        return median(after[-quarter:]) / median(after[:quarter]) if quarter else None
