"""What the project demands of itself, as data, and whether a run met it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

UPPER: Final = frozenset(
    {
        "server_cpu_of_empty",
        "server_cores",
        "ttft_of bare-onnx",
        "itl_spread",
        "next_of_before",
        "memory_growth",
        "p99_of_peers",
        "rss_growth",
        "server_rss_growth",
        "unanswered",
        "failed",
    }
)
"""Metrics whose limit is the most that is allowed; for all others it is the least."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One demand: ``metric`` of a cell is at least, or for those in :data:`UPPER` at most, ``limit``.

    ``route`` is the contender and ``clients`` the streams where text is generated. Of bars with the same
    ``group`` it is enough to meet one.
    """

    scenario: str
    route: str
    clients: int
    metric: str
    limit: float
    group: str = ""

    @property
    def upper(self) -> bool:
        """Whether the limit is the most that is allowed."""
        return self.metric in UPPER


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured; None where the run did not measure it.

    ``excused`` says that another bar of its group was met.
    """

    bar: Bar
    value: float | None
    excused: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar was met; None when it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.bar.limit if self.bar.upper else self.value >= self.bar.limit


_ENCODING: Final = ("encoding-1", "encoding-32")

BARS: Final = (
    *(Bar("tiny", "grpc", clients, "server_cpu_of_empty", 1.5) for clients in (1, 8, 32)),
    *(Bar(name, "grpc", 32, "of_raw", 0.92) for name in _ENCODING),
    *(Bar(name, route, 32, "of_raw", 0.88) for name in _ENCODING for route in ("rest", "rest-tei")),
    *(Bar(name, "grpc", 1, "of_twin", 0.95) for name in _ENCODING),
    Bar("encoding-short", "grpc", 32, "of_raw", 0.85),
    *(Bar("encoding-1", "grpc", clients, "of_peers", 1.0) for clients in (1, 8, 32)),
    *(Bar("encoding-32", "grpc", clients, "of_peers", 1.0) for clients in (1, 8)),
    *(Bar("encoding-short", "grpc", clients, "of_peers", 1.0) for clients in (1, 8, 32)),
    *(Bar(name, "grpc", 32, "p99_of_peers", 1.0) for name in ("encoding-1", "encoding-short")),
    Bar("image", "grpc", 8, "of_raw", 0.95),
    Bar("image", "grpc", 16, "of_raw", 0.95),
    Bar("image", "grpc", 1, "of_twin", 0.95),
)
"""``of_peers``: ahead of the fastest peer is ahead of each. It counts only where every peer was measured."""

Cells = Mapping[tuple[str, str, int], Mapping[str, float | None]]
"""(scenario, route, clients) → metric → measured value."""


def judge(cells: Cells, bars: Iterable[Bar] = BARS) -> Iterator[Verdict]:
    """Yield a verdict for every bar of the scenarios that ran, and of groups that one of them belongs to."""
    ran = {scenario for scenario, _, _ in cells}
    bars = list(bars)
    groups = {bar.group for bar in bars if bar.group and bar.scenario in ran}
    verdicts = [
        Verdict(bar, cells.get((bar.scenario, bar.route, bar.clients), {}).get(bar.metric))
        for bar in bars
        if bar.scenario in ran or bar.group in groups
    ]
    met = {verdict.bar.group for verdict in verdicts if verdict.met}
    for verdict in verdicts:
        yield replace(verdict, excused=bool(verdict.bar.group) and verdict.bar.group in met)
