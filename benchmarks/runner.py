"""Runs a scenario: references and points in turn, round after round, so that drift of the machine cancels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import verify
from benchmarks.encoding.contenders import Place, Started, at_work, start
from benchmarks.encoding.peers.registry import PEERS
from benchmarks.encoding.peers.server import PeerServer
from benchmarks.estimates import ratio
from benchmarks.load import LoadGenerator
from benchmarks.payloads import BUILDERS, Payload
from benchmarks.points import ask
from benchmarks.processes import Server
from benchmarks.references import PACKED, RAW, TWIN, Reading, Reference, empties, empty_name, loops
from benchmarks.results import Measurement, PointResult, ScenarioResult, relate_to_peers
from benchmarks.scenarios import Point, Scenario
from benchmarks.verify import Agreement
from benchmarks.workloads import WORKLOADS

FIRST_WARMUP_SECONDS = 4.0
"""Load before a scenario's first point: sessions for lone batches are loaded when first asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how often to measure.

    Attributes:
        repository: the model repository.
        seconds: length of one point.
        rounds: times that every point is measured.
        warmup: seconds of load before each point.
        search: seconds for each candidate of the raw limit.
        folder: where logs and the peers' files go.
        peers: where the peers' environments are.
        arguments: further flags of ``headrace serve``.
        beside: compare with the peers only. At each number of clients all are measured in turn, as close in
            time as can be and without the raw limit in between.
    """

    repository: Path
    seconds: float
    rounds: int
    warmup: float
    search: float
    folder: Path
    peers: Path
    arguments: tuple[str, ...] = ()
    beside: bool = False


class ScenarioRun:
    """One scenario under way: a server, a load generator and the references."""

    def __init__(
        self, scenario: Scenario, points: Sequence[Point], options: Options, progress: Callable[[str], None]
    ) -> None:
        """Prepare the inputs; ``progress`` is told what happens."""
        self._scenario = scenario
        self._options = options
        self._progress = progress
        self._workload = WORKLOADS[scenario.workload](options.repository / scenario.model)
        self._payloads: dict[str, Payload] = {
            name: BUILDERS[name](scenario, self._workload)
            for name in {point.route.payload for point in points}
        }
        self._points = points
        self._latest: dict[str, Reading] = {}

    def run(self) -> ScenarioResult:
        """Measure everything.

        Raises:
            WrongAnswerError: the server does not give the model's numbers.
            RuntimeError: the server does not start.
        """
        scenario, options = self._scenario, self._options
        with ExitStack() as stack:
            references: dict[str, Reference] = {}
            cores = len(os.sched_getaffinity(0))
            if scenario.reference == "raw" and not options.beside:
                self._progress("searching the raw limit")
                references |= stack.enter_context(loops(scenario, self._workload, cores, options.search))
            self._progress("starting the server")
            server = stack.enter_context(
                Server(
                    options.repository, scenario.model, options.folder / f"{scenario.name}.log",
                    options.arguments,
                )
            )  # fmt: skip
            load = stack.enter_context(LoadGenerator())
            verified = self._verify(server)
            started = stack.enter_context(self._peers(cores))
            if scenario.reference == "empty":
                references |= stack.enter_context(self._empties(server, load))
            points = [point for point in self._points if point.route.peer not in started.skipped]
            results = [
                PointResult(point.route.name, point.clients, peer=bool(point.route.peer)) for point in points
            ]
            order = list(zip(points, results, strict=True))
            if options.beside:
                order.sort(key=lambda pair: pair[0].clients)
            for round_number in range(options.rounds):
                for number, (point, result) in enumerate(order[:: -1 if round_number % 2 else 1]):
                    peer = started.running.get(point.route.peer)
                    if point.route.peer and peer is None:
                        continue
                    first = round_number == number == 0
                    try:
                        result.rounds.append(
                            self._measure(point, peer or server, load, references, first=first)
                        )
                    except (RuntimeError, TimeoutError) as error:
                        if peer is None:
                            raise
                        started.give_up(point.route.peer, f"{point.clients} clients: {error}")
        results = [result for result in results if result.rounds]
        relate_to_peers(results)
        return ScenarioResult(
            scenario.name, scenario.title, scenario.unit, scenario.items,
            [reference.result for reference in references.values()], results,
            f"answers differ from the bare model's by at most {verified.difference:.1e}, "
            f"cosines are at least {verified.cosine:.6f}",
            {name: PEERS[name].title for name in started.running}, started.skipped,
        )  # fmt: skip

    def _verify(self, server: Server) -> Agreement:
        """Compare the first answers of all our routes with the bare model's."""
        found = [
            verify.check(server.grpc, server.http, self._payloads[name], self._workload, self._scenario.items)
            for name in sorted({point.route.payload for point in self._points if not point.route.peer})
        ]
        differences, cosines = zip(*found, strict=True) if found else ((0.0,), (1.0,))
        return Agreement(max(differences), min(cosines))

    def _peers(self, cores: int) -> AbstractContextManager[Started]:
        """Start the peers that are asked for and compare their first answers, too."""
        names = {point.route.peer: point.route.payload for point in self._points if point.route.peer}
        options = self._options
        place = Place(
            options.repository, options.peers, options.folder / f"{self._scenario.name}-peers", cores
        )
        wanted = {name: self._payloads[payload] for name, payload in names.items()}
        return start(wanted, self._workload, self._scenario.items, place, self._progress)

    def _empties(self, server: Server, load: LoadGenerator) -> AbstractContextManager[dict[str, Reference]]:
        """Start a handler that does nothing and answers as many bytes as the real one."""
        payload = BUILDERS["addsub-grpc"](self._scenario, self._workload)
        (answer,) = verify.answers(server.grpc, server.http, payload, 1)
        return empties(load, payload, answer, sorted({point.clients for point in self._points}))

    def _measure(
        self,
        point: Point,
        target: Server | PeerServer,
        load: LoadGenerator,
        references: dict[str, Reference],
        *,
        first: bool,
    ) -> Measurement:
        """Measure a point between two readings of its references."""
        options = self._options
        names = () if options.beside else [name for name in reference_names(point) if name in references]
        before = {name: self._latest.get(name) or self._read(references[name]) for name in names}
        payload = self._payloads[point.route.payload]
        self._progress(f"{point.route.name}, {point.clients} clients")
        warmup = FIRST_WARMUP_SECONDS if first else options.warmup
        with at_work(target):
            measured = ask(
                load, target.grpc if payload.protocol == "grpc" else target.http, payload, point.clients,
                options.seconds, warmup, target.groups(),
            )  # fmt: skip
        after = {name: self._read(references[name]) for name in names}
        self._latest = after
        relate(point, measured, before, after)
        return measured

    def _read(self, reference: Reference) -> Reading:
        self._progress(f"reference: {reference.result.name}")
        return reference.measure(max(1.0, self._options.seconds / 2))


def reference_names(point: Point) -> tuple[str, ...]:
    """Return what a point is related to, as far as the scenario has it."""
    if point.scenario.reference == "empty":
        return (empty_name(point.clients),)
    return (RAW, TWIN if point.clients == 1 else PACKED)


def relate(
    point: Point, measured: Measurement, before: dict[str, Reading], after: dict[str, Reading]
) -> None:
    """Fill the ratios of a measurement from the readings right before and after it."""

    def of(name: str) -> float:
        return ratio(measured.rate, before[name].rate, after[name].rate)

    if RAW in before:
        measured.of_raw = of(RAW)
        measured.cpu_of_raw = ratio(measured.cpu_per_item, before[RAW].cpu, after[RAW].cpu)
    if PACKED in before:
        measured.of_packed = of(PACKED)
    if TWIN in before:
        measured.of_twin = of(TWIN)
    empty = empty_name(point.clients)
    if empty in before:
        measured.of_empty = of(empty)
        measured.server_cpu_of_empty = ratio(measured.cpu["server"], before[empty].cpu, after[empty].cpu)
