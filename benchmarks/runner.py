"""Runs a scenario: references and points in turn, round after round, so that drift of the machine cancels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
            for name in {route.payload for route in scenario.routes}
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
            answers, verified = self._verify(server)
            if scenario.reference == "empty":
                route = next(
                    route for route in scenario.routes if self._payloads[route.payload].protocol == "grpc"
                )
                clients = sorted({point.clients for point in self._points})
                payload = self._payloads[route.payload]
                references |= stack.enter_context(empties(load, payload, answers[route.payload], clients))
            results = [PointResult(point.route.name, point.clients) for point in self._points]
            for round_number in range(options.rounds):
                for number, (point, result) in enumerate(zip(self._points, results, strict=True)):
                    first = round_number == number == 0
                    result.rounds.append(self._measure(point, server, load, references, first=first))
        return ScenarioResult(
            scenario.name, scenario.title, scenario.unit, scenario.items,
            [reference.result for reference in references.values()], results, verified,
        )  # fmt: skip

    def _verify(self, server: Server) -> tuple[dict[str, bytes], str]:
        """Compare every route's first answer with the bare model's."""
        truth = verify.expected(self._workload, self._scenario.items)
        answers = {}
        largest = 0.0
        for name, payload in self._payloads.items():
            answers[name] = verify.first_answer(server.grpc, server.http, payload)
            largest = max(largest, verify.difference(answers[name], payload, truth))
        return answers, f"answers differ from the bare model's by at most {largest:.1e}"

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
    if TWIN in before:
        measured.of_twin = of(TWIN)
    empty = empty_name(point.clients)
    if empty in before:
        measured.of_empty = of(empty)
        measured.server_cpu_of_empty = ratio(
            measured.cpu["server"], before[empty].server_cpu, after[empty].server_cpu
        )
