"""What a run of generation scenarios leaves behind: plain data that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.estimates import middle


@dataclass(slots=True)
class Reading:
    """One contender at one number of streams in one round.

    Attributes:
        rate: output tokens a second, prompts included in the time.
        decode_rate: the same after every sequence had its first token.
        ttft_ms: median time to the first token.
        itl_p50_ms: median time between tokens.
        itl_p99_ms: 99th percentile of it.
        cpu: CPU-seconds per 1,000 output tokens of each group of processes.
        other_cores: cores that other processes kept busy.
        load: load average of the last minute.
        failed: requests that were not answered well.
        errors: the first of their errors.
        of: ``rate`` ÷ that of each other contender in the same round.
        decode_of: the same of ``decode_rate``.
        ttft_of: the same of ``ttft_ms``.
        agreement: share of tokens equal to the bare loop's; None where one of them does not tell ids.
        cold_ttft_ms: time to the first token when the prefix was new; only where there is one.
        extra: what only one kind of scenario measures.
    """

    rate: float
    decode_rate: float
    ttft_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    cpu: dict[str, float]
    other_cores: float
    load: float
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    of: dict[str, float] = field(default_factory=dict)
    decode_of: dict[str, float] = field(default_factory=dict)
    ttft_of: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None
    cold_ttft_ms: float | None = None
    extra: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float | None]:
        """Return everything that a bar or a table may ask for, by name."""
        server = self.cpu.get("server")
        return {
            "rate": self.rate,
            "decode_rate": self.decode_rate,
            "ttft_ms": self.ttft_ms,
            "itl_p50_ms": self.itl_p50_ms,
            "itl_p99_ms": self.itl_p99_ms,
            "itl_spread": self.itl_p99_ms / self.itl_p50_ms if self.itl_p50_ms else None,
            "other_cores": self.other_cores,
            "load": self.load,
            "agreement": self.agreement,
            "cpu_total": sum(self.cpu.values()) or None,
            # CPU-seconds per 1,000 tokens ÷ 10 is CPU-seconds per 100: cores at 100 tokens a second.
            "server_cores": None if server is None else server / 10.0,
            "cold_ttft_ms": self.cold_ttft_ms,
            "prefix_speedup": None if self.cold_ttft_ms is None else self.cold_ttft_ms / self.ttft_ms,
            **{f"cpu {name}": value for name, value in self.cpu.items()},
            **{f"of {name}": value for name, value in self.of.items()},
            **{f"decode_of {name}": value for name, value in self.decode_of.items()},
            **{f"ttft_of {name}": value for name, value in self.ttft_of.items()},
            **self.extra,
        }


@dataclass(slots=True)
class GenerationPoint:
    """All rounds of one contender at one number of streams."""

    contender: str
    streams: int
    rounds: list[Reading] = field(default_factory=list)

    def medians(self) -> dict[str, float | None]:
        """Return the medians over the rounds of all metrics."""
        each = [reading.metrics() for reading in self.rounds]
        names = dict.fromkeys(name for metrics in each for name in metrics)
        return {name: middle([_number(metrics.get(name)) for metrics in each]) for name in names}

    @property
    def failed(self) -> int:
        """Requests of all rounds that were not answered well."""
        return sum(reading.failed for reading in self.rounds)

    @property
    def disturbed(self) -> bool:
        """Whether something else kept more than a twentieth of a core busy."""
        return (middle([reading.other_cores for reading in self.rounds]) or 0.0) > 0.05


@dataclass(slots=True)
class GenerationResult:
    """One scenario.

    ``titles`` has the version of each contender, ``skipped`` why others did not run.
    """

    name: str
    title: str
    kind: str
    threads: int
    method: str
    points: list[GenerationPoint] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def cells(self) -> dict[tuple[str, str, int], Mapping[str, float | None]]:
        """Return the medians that bars are about, by (scenario, contender, streams)."""
        return {(self.name, point.contender, point.streams): point.medians() for point in self.points}


def relate(readings: Mapping[str, Reading]) -> None:
    """Fill the ratios between the contenders of one round."""
    for name, reading in readings.items():
        for other, reference in readings.items():
            if other != name:
                reading.of[other] = _ratio(reading.rate, reference.rate)
                reading.decode_of[other] = _ratio(reading.decode_rate, reference.decode_rate)
                reading.ttft_of[other] = _ratio(reading.ttft_ms, reference.ttft_ms)


def _number(value: float | None) -> float | None:
    """Return None for what is not a number: a median cannot order it."""
    return None if value is None or math.isnan(value) else value


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float("nan")
