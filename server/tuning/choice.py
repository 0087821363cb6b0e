"""The rule that chooses among measured candidates: a pure function, equal numbers give equal choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from headrace.server.tuning.candidates import Candidate

LONE_SLACK: Final = 1.25
"""A lone request may take this many times as long as with the candidate that serves it fastest."""

TIE: Final = 0.05
"""Throughputs that differ by no more than this share of the best are taken to be equal."""

LONE_TIE: Final = 1.1
"""Lone latencies up to this many times the lowest one are taken to be equal."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one candidate reached.

    Attributes:
        candidate: what was measured.
        throughput: requests a second under load; texts are counted in average texts.
        lone_ms: milliseconds of a request that has the model to itself.
        memory: bytes that its processes have for themselves.
    """

    candidate: Candidate
    throughput: float
    lone_ms: float
    memory: int = 0


def choose(measured: Sequence[Measurement]) -> Measurement:
    """Choose the candidate to serve with.

    1. A candidate whose lone latency is above ``LONE_SLACK`` times the lowest one is out.
    2. The highest throughput decides; those within ``TIE`` of it count as equal.
    3. Of these, the lowest lone latency decides; those up to ``LONE_TIE`` times it count as equal.
    4. Then fewer processes decide, then fewer copies of the model in memory, then the order in which the
       candidates are given: the present setting comes first and stays.

    Raises:
        ValueError: nothing was measured.
    """
    fastest = min(entry.lone_ms for entry in measured)
    quick = [entry for entry in measured if entry.lone_ms <= fastest * LONE_SLACK]
    best = max(entry.throughput for entry in quick)
    equal = [entry for entry in quick if entry.throughput >= best * (1 - TIE)]
    lowest = min(entry.lone_ms for entry in equal)
    equal = [entry for entry in equal if entry.lone_ms <= lowest * LONE_TIE]
    return min(equal, key=lambda entry: (entry.candidate.layout.instances, entry.candidate.layout.copies))


def medians(rounds: Iterable[Measurement]) -> list[Measurement]:
    """Reduce the measurements of several rounds to one of each candidate, in order of first appearance."""
    grouped: dict[Candidate, list[Measurement]] = {}
    for entry in rounds:
        grouped.setdefault(entry.candidate, []).append(entry)
    return [
        Measurement(
            candidate,
            median(entry.throughput for entry in entries),
            median(entry.lone_ms for entry in entries),
            int(median(entry.memory for entry in entries)),
        )
        for candidate, entries in grouped.items()
    ]
