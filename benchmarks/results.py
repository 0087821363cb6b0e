"""What a run leaves behind: plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.estimates import middle
from benchmarks.generation.results import GenerationResult
from benchmarks.scenarios import peers_at
from benchmarks.soak.results import SoakResult

CPU_GROUPS = ("server", "workers", "envoy", "client", "peer")


@dataclass(slots=True)
class Measurement:
    """One point in one round.

    Attributes:
        rate: items per second.
        p50_ms: median latency of a request.
        p99_ms: 99th percentile of it.
        cpu: CPU-seconds per 1,000 requests of each group of processes.
        cpu_per_item: CPU-seconds of all groups together per 1,000 items.
        other_cores: cores that other processes kept busy.
        failed: requests that were not answered well.
        errors: the first of their errors.
        of_raw: ``rate`` ÷ raw limit; only where the scenario has one.
        cpu_of_raw: ``cpu_per_item`` ÷ that of the raw loops; steadier than ``of_raw`` on a busy machine.
        of_packed: ``rate`` ÷ the raw limit with the graph that the server made; of texts, not for one client.
        of_twin: ``rate`` ÷ the bare loop that takes one request at a time; only for a single client.
        of_empty: ``rate`` ÷ the handler that does nothing; only for the tiny model.
        server_cpu_of_empty: the server's own CPU a request ÷ that of the handler that does nothing.
        of: ``rate`` ÷ that of each peer at as many clients in the same round, both related to the raw limit
            beside them where there is one; only of our routes.
        p99_of: ``p99_ms`` ÷ that of each peer, the same.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    cpu: dict[str, float]
    cpu_per_item: float
    other_cores: float
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    of_raw: float | None = None
    cpu_of_raw: float | None = None
    of_packed: float | None = None
    of_twin: float | None = None
    of_empty: float | None = None
    server_cpu_of_empty: float | None = None
    of: dict[str, float] = field(default_factory=dict)
    p99_of: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class PointResult:
    """All rounds of one point; ``peer`` says that it is not ours."""

    route: str
    clients: int
    rounds: list[Measurement] = field(default_factory=list)
    peer: bool = False

    @property
    def compared(self) -> frozenset[str]:
        """The peers that it was measured beside."""
        return frozenset(name for each in self.rounds for name in each.of)

    def median(self, metric: str) -> float | None:
        """Return the median over the rounds of an attribute of a measurement; None where unmeasured.

        ``of_peers`` is the median beside the fastest peer, ``p99_of_peers`` that beside the steadiest: of the
        medians beside each, the one that is worst for us.
        """
        if metric == "of_peers":
            return min(self._beside([each.of for each in self.rounds]), default=None)
        if metric == "p99_of_peers":
            return max(self._beside([each.p99_of for each in self.rounds]), default=None)
        return middle([getattr(each, metric) for each in self.rounds])

    @staticmethod
    def _beside(rounds: list[dict[str, float]]) -> Iterator[float]:
        """Yield the median over the rounds for each peer."""
        for name in {name for ratios in rounds for name in ratios}:
            ratio = middle([ratios.get(name) for ratios in rounds])
            if ratio is not None:
                yield ratio

    def cpu(self, group: str) -> float:
        """Return the median CPU-seconds per 1,000 requests of a group of processes."""
        return middle([each.cpu.get(group, 0.0) for each in self.rounds]) or 0.0

    @property
    def failed(self) -> int:
        """Requests of all rounds that were not answered well."""
        return sum(each.failed for each in self.rounds)

    @property
    def disturbed(self) -> bool:
        """Whether something else kept more than a twentieth of a core busy."""
        return (self.median("other_cores") or 0.0) > 0.05


@dataclass(slots=True)
class ReferenceResult:
    """A raw limit, twin or empty handler: how it was run, and items per second each time."""

    name: str
    setup: str
    rates: list[float] = field(default_factory=list)
    tried: Sequence[tuple[str, int, float]] = ()
    cpu: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median items per second."""
        return middle(self.rates) or float("nan")


@dataclass(slots=True)
class ScenarioResult:
    """One scenario: its references and its points.

    ``titles`` says what each peer is, ``skipped`` why others were not measured.
    """

    name: str
    title: str
    unit: str
    items: int
    references: list[ReferenceResult]
    points: list[PointResult]
    verified: str
    titles: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class RunResult:
    """A whole run."""

    started: str
    machine: Mapping[str, object]
    options: Mapping[str, object]
    scenarios: list[ScenarioResult] = field(default_factory=list)
    generation: list[GenerationResult] = field(default_factory=list)
    soak: list[SoakResult] = field(default_factory=list)
    bars: list[dict[str, object]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Requests of all scenarios that were not answered well."""
        points = [point for scenario in self.scenarios for point in scenario.points]
        return sum(point.failed for point in points) + sum(
            point.failed for scenario in self.generation for point in scenario.points
        )

    def cells(self) -> dict[tuple[str, str, int], Mapping[str, float | None]]:
        """Return the medians that bars are about, by (scenario, route, clients).

        Those beside the peers are there only where every peer of the scenario was measured.
        """
        found: dict[tuple[str, str, int], Mapping[str, float | None]] = {}
        for scenario in self.scenarios:
            for point in scenario.points:
                metrics = ["of_raw", "of_twin", "server_cpu_of_empty"]
                if point.compared and point.compared >= peers_at(scenario.name, point.clients):
                    metrics += ["of_peers", "p99_of_peers"]
                found[scenario.name, point.route, point.clients] = {
                    name: point.median(name) for name in metrics
                }
        for result in self.generation:
            found |= result.cells()
        for soak in self.soak:
            found |= soak.cells()
        return found


def relate_to_peers(points: Sequence[PointResult]) -> None:
    """Fill what our points are beside the peers' at as many clients, round by round."""
    for point in points:
        others = [each for each in points if each.peer and each.clients == point.clients]
        if point.peer or not others:
            continue
        for number, measured in enumerate(point.rounds):
            # a peer that answered nothing in a short span is no measure
            met = [each for each in others if number < len(each.rounds)]
            theirs = {each.route: each.rounds[number] for each in met if _speed(each.rounds[number]) > 0}
            if not theirs:
                continue
            measured.of = {name: _speed(measured) / _speed(each) for name, each in theirs.items()}
            measured.p99_of = {name: measured.p99_ms / each.p99_ms for name, each in theirs.items()}


def _speed(measured: Measurement) -> float:
    """Return the rate beside the raw limit right around it: the machine's drift is no merit."""
    return measured.rate if measured.of_raw is None else measured.of_raw
