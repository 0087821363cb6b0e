"""What the project demands of itself, as data, and whether a run met it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

UPPER: Final = frozenset(
    {
        "server_cpu_of_empty",
        "server_cores",
        "ttft_of bare-onnx",
        "itl_spread",
        "next_of_before",
        "memory_growth",
    }
)
"""Metrics whose limit is the most that is allowed; for all others it is the least."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One demand: ``metric`` of a cell is at least, or for those in :data:`UPPER` at most, ``limit``.

    ``route`` is the contender and ``clients`` the streams where text is generated.
    """

    scenario: str
    route: str
    clients: int
    metric: str
    limit: float

    @property
    def upper(self) -> bool:
        """Whether the limit is the most that is allowed."""
        return self.metric in UPPER


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured; None where the run did not measure it."""

    bar: Bar
    value: float | None

    @property
    def met(self) -> bool | None:
        """Whether the bar was met; None when it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.bar.limit if self.bar.upper else self.value >= self.bar.limit


BARS: Final = (
    *(Bar("tiny", "grpc", clients, "server_cpu_of_empty", 1.5) for clients in (1, 8, 32)),
    Bar("embed-1", "grpc", 32, "of_raw", 0.90),
    Bar("embed-1", "rest", 32, "of_raw", 0.85),
    Bar("embed-1", "grpc", 1, "of_twin", 0.95),
    Bar("embed-32", "grpc", 32, "of_raw", 0.90),
    Bar("embed-32", "rest", 32, "of_raw", 0.85),
    Bar("embed-32", "grpc", 1, "of_twin", 0.95),
    Bar("image", "grpc", 8, "of_raw", 0.95),
    Bar("image", "grpc", 16, "of_raw", 0.95),
    Bar("image", "grpc", 1, "of_twin", 0.95),
)

Cells = Mapping[tuple[str, str, int], Mapping[str, float | None]]
"""(scenario, route, clients) → metric → measured value."""


def judge(cells: Cells, bars: Iterable[Bar] = BARS) -> Iterator[Verdict]:
    """Yield a verdict for every bar of the scenarios that ran."""
    ran = {scenario for scenario, _, _ in cells}
    for bar in bars:
        if bar.scenario in ran:
            cell = cells.get((bar.scenario, bar.route, bar.clients), {})
            yield Verdict(bar, cell.get(bar.metric))
