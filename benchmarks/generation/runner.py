"""Runs a generation scenario: all contenders one after another, round after round, so that drift cancels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from benchmarks.generation import workload
from benchmarks.generation.contenders import Options, Started, start, threads
from benchmarks.generation.figures import agreement
from benchmarks.generation.measure import Measured, measure
from benchmarks.generation.overload import overload
from benchmarks.generation.paths import ServerPath
from benchmarks.generation.peers.process import PeerProcess
from benchmarks.generation.peers.registry import PEERS, RAW
from benchmarks.generation.results import GenerationPoint, GenerationResult, Reading, relate
from benchmarks.generation.scenarios import EVERY_PATH, GRPC, Scenario
from benchmarks.generation.work import Work

MEAN_STEP_SECONDS = 0.05
"""About what a step of many streams takes: the time between callers of ``mixed`` is a few of them."""

METHOD = (
    "{rounds} rounds; in each, every contender once for every number of streams, on new prompts, with "
    "{threads} threads; every other round in reverse order; ratios are taken within a round, medians over "
    "the rounds are shown; peers are stopped (SIGSTOP) while others are measured"
)


def shortened(scenario: Scenario) -> Scenario:
    """Return a scenario that only shows that everything works."""
    return replace(
        scenario,
        prompt=min(scenario.prompt, 32) if scenario.kind == "batch" else scenario.prompt,
        new_tokens=min(scenario.new_tokens, 8) if scenario.kind != "overload" else scenario.new_tokens,
        streams=scenario.streams[:2],
        prompt_range=(16, 32),
        output_range=(4, 12),
    )


class GenerationRun:
    """One scenario under way."""

    def __init__(
        self,
        scenario: Scenario,
        names: Sequence[str],
        streams: Sequence[int],
        options: Options,
        progress: Callable[[str], None],
    ) -> None:
        """Measure contenders ``names`` at ``streams``; ``progress`` is told what happens."""
        self._scenario = scenario
        self._names = list(names)
        self._streams = list(streams)
        self._options = options
        self._progress = progress

    def run(self) -> GenerationResult:
        """Measure everything.

        Raises:
            RuntimeError: the server does not start, or fails while it is measured.
        """
        scenario, options = self._scenario, self._options
        result = GenerationResult(
            scenario.name, scenario.title, scenario.kind, threads(),
            METHOD.format(rounds=options.rounds, threads=threads()),
        )  # fmt: skip
        with start(scenario, self._names, max(self._streams), options, self._progress) as started:
            result.titles = {name: each.title for name, each in started.running.items()}
            result.skipped = started.skipped
            points = {
                (name, streams): GenerationPoint(name, streams)
                for streams in self._streams
                for name in started.running
            }
            for number in range(options.rounds):
                for streams in self._streams:
                    for name, reading in self._round(started, streams, number).items():
                        points[name, streams].rounds.append(reading)
        result.points = list(points.values())
        return result

    def _round(self, started: Started, streams: int, number: int) -> dict[str, Reading]:
        """Measure every contender once at ``streams``."""
        names = list(started.running)
        measured: dict[str, Measured] = {}
        for name in names if number % 2 == 0 else reversed(names):
            contender = started.running[name]
            self._progress(f"round {number + 1}: {name}, {streams} streams")
            contender.resume()
            try:
                measured[name] = self._measure(contender, started, streams, number)
            except RuntimeError as error:
                self._drop(contender, started, f"failed in round {number + 1} at {streams} streams: {error}")
            finally:
                contender.pause()
        if RAW in measured:
            for name, each in measured.items():
                if name != RAW and self._scenario.kind == "batch":
                    each.reading.agreement = agreement(each.trace, measured[RAW].trace)
        readings = {name: each.reading for name, each in measured.items()}
        relate(readings)
        return readings

    @staticmethod
    def _drop(contender: ServerPath | PeerProcess, started: Started, reason: str) -> None:
        """Go on without a peer that failed; the others can still be compared.

        Raises:
            RuntimeError: it was no peer.
        """
        if not isinstance(contender, PeerProcess):
            raise RuntimeError(f"{contender.name} {reason}")  # noqa: TRY004 - what went wrong is no type
        contender.close()
        del started.running[contender.name]
        started.skipped[contender.name] = f"it {reason}"

    def _measure(
        self, contender: ServerPath | PeerProcess, started: Started, streams: int, number: int
    ) -> Measured:
        scenario = self._scenario
        if scenario.kind == "overload":
            assert started.server is not None
            assert isinstance(contender, ServerPath)
            return overload(scenario, contender, started.server, streams, number)
        self._do(contender, workload.warm(streams, workload.source("warm", contender.name, number, streams)))
        # Our paths share a server: neither may find the other's prompts in the prefix cache.
        own = contender.name if contender.name in EVERY_PATH and contender.name != GRPC else ""
        draw = workload.source(scenario.name, number, streams, own)
        if scenario.kind == "mixed":
            return measure(contender, self._mixed(contender.name, streams, draw))
        if scenario.kind == "prefix":
            draw = workload.source(scenario.name, contender.name, number)
            shared = workload.prompt(draw, scenario.prompt)
            cold = measure(contender, workload.prefixed(shared, scenario.new_tokens, draw))
            warm = measure(contender, workload.prefixed(shared, scenario.new_tokens, draw))
            warm.reading.cold_ttft_ms = cold.reading.ttft_ms
            return warm
        work = workload.uniform(streams, scenario.prompt, scenario.new_tokens, draw)
        return measure(contender, work)

    def _mixed(self, name: str, streams: int, draw: Random) -> Work:
        """Return staggered requests; for a static contender a batch of their mean lengths, its best case."""
        scenario = self._scenario
        if name in PEERS and PEERS[name].static:
            prompt, output = (sum(pair) // 2 for pair in (scenario.prompt_range, scenario.output_range))
            return workload.uniform(streams, prompt, output, draw)
        return workload.mixed(scenario, streams, draw, 4 * MEAN_STEP_SECONDS)

    @staticmethod
    def _do(contender: ServerPath | PeerProcess, work: Work) -> None:
        """Do ``work`` and forget it."""
        if isinstance(contender, ServerPath):
            contender.send(work)
        else:
            contender.run(work)
