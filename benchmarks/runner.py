"""Runs a scenario: references and points in turn, round after round, so that drift of the machine cancels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import verify
from benchmarks.estimates import ratio
from benchmarks.load import LoadGenerator
from benchmarks.payloads import BUILDERS, Payload
from benchmarks.points import ask
from benchmarks.processes import Server
from benchmarks.references import RAW, TWIN, Reading, Reference, empties, empty_name, loops
from benchmarks.results import Measurement, PointResult, ScenarioResult
from benchmarks.scenarios import Point, Scenario
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
        log: where the server's log goes.
        arguments: further flags of ``headrace serve``.
    """

    repository: Path
    seconds: float
    rounds: int
    warmup: float
    search: float
    log: Path
    arguments: tuple[str, ...] = ()


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
            if scenario.reference == "raw":
                self._progress("searching the raw limit")
                cores = len(os.sched_getaffinity(0))
                references |= stack.enter_context(loops(scenario, self._workload, cores, options.search))
            self._progress("starting the server")
            server = stack.enter_context(
                Server(options.repository, scenario.model, options.log, options.arguments)
            )
            load = stack.enter_context(LoadGenerator())
            verified = self._verify(server)
            if scenario.reference == "empty":
                references |= stack.enter_context(self._empties(server, load))
            results = [PointResult(point.route.name, point.clients) for point in self._points]
            for round_number in range(options.rounds):
                for number, (point, result) in enumerate(zip(self._points, results, strict=True)):
                    first = round_number == number == 0
                    result.rounds.append(self._measure(point, server, load, references, first=first))
        return ScenarioResult(
            scenario.name, scenario.title, scenario.unit, scenario.items,
            [reference.result for reference in references.values()], results, verified,
        )  # fmt: skip

    def _verify(self, server: Server) -> str:
        """Compare every route's first answer with the bare model's."""
        truth = verify.expected(self._workload, self._scenario.items)
        largest = max(
            verify.difference(verify.first_answer(server.grpc, server.http, payload), payload, truth)
            for payload in self._payloads.values()
        )
        return f"answers differ from the bare model's by at most {largest:.1e}"

    def _empties(self, server: Server, load: LoadGenerator) -> AbstractContextManager[dict[str, Reference]]:
        """Start a handler that does nothing and answers as many bytes as the real one."""
        payload = BUILDERS["addsub-grpc"](self._scenario, self._workload)
        answer = verify.first_answer(server.grpc, server.http, payload)
        return empties(load, payload, answer, sorted({point.clients for point in self._points}))

    def _measure(
        self,
        point: Point,
        server: Server,
        load: LoadGenerator,
        references: dict[str, Reference],
        *,
        first: bool,
    ) -> Measurement:
        """Measure a point between two readings of its references."""
        options = self._options
        names = reference_names(point)
        before = {name: self._latest.get(name) or self._read(references[name]) for name in names}
        payload = self._payloads[point.route.payload]
        self._progress(f"{point.route.name}, {point.clients} clients")
        measured = ask(
            load, server.grpc if payload.protocol == "grpc" else server.http, payload, point.clients,
            options.seconds, FIRST_WARMUP_SECONDS if first else options.warmup,
            server.groups(),
        )  # fmt: skip
        after = {name: self._read(references[name]) for name in names}
        self._latest = after
        relate(point, measured, before, after)
        return measured

    def _read(self, reference: Reference) -> Reading:
        self._progress(f"reference: {reference.result.name}")
        return reference.measure(max(1.0, self._options.seconds / 2))


def reference_names(point: Point) -> tuple[str, ...]:
    """Return what a point is related to."""
    if point.scenario.reference == "empty":
        return (empty_name(point.clients),)
    return (RAW, TWIN) if point.clients == 1 else (RAW,)


def relate(
    point: Point, measured: Measurement, before: dict[str, Reading], after: dict[str, Reading]
) -> None:
    """Fill the ratios of a measurement from the readings right before and after it."""

    def of(name: str) -> float:
        return ratio(measured.rate, before[name].rate, after[name].rate)

    if RAW in before:
        measured.of_raw = of(RAW)
        measured.cpu_of_raw = ratio(measured.cpu_per_item, before[RAW].cpu, after[RAW].cpu)
    if TWIN in before:
        measured.of_twin = of(TWIN)
    empty = empty_name(point.clients)
    if empty in before:
        measured.of_empty = of(empty)
        measured.server_cpu_of_empty = ratio(measured.cpu["server"], before[empty].cpu, after[empty].cpu)
