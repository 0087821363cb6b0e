"""Trying the candidates of one model within a number of seconds, and choosing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Final

from headrace.server.errors import HeadraceError
from headrace.server.tuning.cache import Record
from headrace.server.tuning.candidates import Layout, free_fields, groups, layouts
from headrace.server.tuning.choice import Measurement, choose, medians
from headrace.server.tuning.fingerprint import memory_bytes
from headrace.server.tuning.load import settle
from headrace.server.tuning.measuring import Effort, load_once, measure_group
from headrace.server.tuning.workload import NotTunableError

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine

ROUNDS: Final = 3
"""Rounds that a thorough measurement aims at; it goes on as long as another one fits into its time."""
MEMORY_SHARE: Final = 0.5
"""Of the memory there is, what the processes of a candidate may take."""
_WORKING: Final = 0.6  # share of the time that measures; the rest starts and ends processes
_SHORTEST: Final = 0.2  # seconds of one measurement
_LONGEST: Final = (0.5, 2.0)  # quick, thorough
_LIMITS: Final = (3, 5)  # limits of a batch: quick, thorough


@dataclass(frozen=True, slots=True)
class Step:
    """How far it is: about to measure ``layouts``, with ``fraction`` of the time gone."""

    layouts: Sequence[Layout]
    round: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured, medians over the rounds, and what was chosen.

    Attributes:
        chosen: one of ``measured``.
        measured: the present setting first.
        rounds: whole ones.
        complete: no candidate was left out for want of time or memory.
        disturbance: share of the processors that other programs used meanwhile, from 0 to 1; the median
            over all that was measured.
    """

    chosen: Measurement
    measured: tuple[Measurement, ...]
    rounds: int
    complete: bool
    disturbance: float

    @property
    def present(self) -> Measurement:
        """What the model would be served with if nothing were chosen."""
        return self.measured[0]

    def record(self, definition: ModelDefinition, facts: dict[str, str]) -> Record:
        """Return what is kept of it; ``facts`` are the machine's."""
        return Record(
            model=definition.name,
            version=definition.version,
            chosen=self.chosen,
            measured=self.measured,
            complete=self.complete,
            disturbance=self.disturbance,
            facts=facts,
        )


async def tune(
    definition: ModelDefinition,
    machine: Machine,
    *,
    seconds: float,
    thorough: bool,
    progress: Callable[[Step], None] = lambda _: None,
) -> Outcome:
    """Measure the candidates of a model, each in worker processes of its own, one layout after another.

    Args:
        definition: the model.
        machine: what instances are planned for.
        seconds: for all of it, after the model was loaded once. A quick measurement leaves out what does not
            fit any more, but for the first layout; what has not ended after twice this time is given up in
            any case.
        thorough: more limits of a batch, all layouts, and rounds until the time is used up.
        progress: called before each layout.

    Raises:
        NotTunableError: there is nothing to choose, or it cannot be measured; the text says why.
    """
    if not free_fields(definition):
        generates = definition.generation_model is not None
        raise NotTunableError(
            "models that generate text are not tuned" if generates else "its configuration says everything"
        )
    await load_once(definition)  # what only the first load of a model does is not measured
    work = _Work(definition, machine, seconds, thorough, progress)
    try:
        async with asyncio.timeout(2 * seconds):
            await settle([os.getpid()])
            # In a task of its own: a TaskGroup of Python 3.11 that fails leaves its cancellation behind in
            # the task it ran in, and the end of the time would pass for a cancellation by the caller.
            await asyncio.create_task(work.run())
    except TimeoutError:
        if not work.measured:
            raise NotTunableError(f"it could not be measured in {2 * seconds:g} seconds") from None
        work.complete = False
    except HeadraceError as error:
        raise NotTunableError(error.message) from error
    measured = medians(work.measured)
    return Outcome(choose(measured), tuple(measured), work.rounds, work.complete, median(work.disturbances))


class _Work:
    """The rounds of one model."""

    def __init__(
        self,
        definition: ModelDefinition,
        machine: Machine,
        seconds: float,
        thorough: bool,
        progress: Callable[[Step], None],
    ) -> None:
        self.measured: list[Measurement] = []
        self.disturbances: list[float] = []
        self.complete = True
        self.rounds = 0
        self._definition = definition
        self._machine = machine
        self._progress = progress
        self._thorough = thorough
        self._begin = time.monotonic()
        self._seconds = seconds
        self._groups = groups(layouts(definition, machine))
        self._took: dict[tuple[Layout, ...], float] = {}
        self._clients = 0
        measurements = sum(len(group) + _LIMITS[thorough] for group in self._groups)
        share = _WORKING * seconds / measurements / (ROUNDS if thorough else 1)
        self._slice = min(_LONGEST[thorough], max(_SHORTEST, share))

    async def run(self) -> None:
        for number in count():
            # Every other round goes backwards, so that a drift of the machine favours nobody.
            order = self._groups if number % 2 == 0 else self._groups[::-1]
            measured = await self._round(number, order)
            if measured is None:
                return
            self.rounds += 1
            self._groups = [group for group in self._groups if group in self._took]
            if not self._thorough:
                return

    async def _round(self, number: int, order: Sequence[tuple[Layout, ...]]) -> list[Measurement] | None:
        """Measure all groups once; None, and nothing is kept, if a later round does not fit any more."""
        if number and self._left() < sum(self._took.values()):
            return None
        kept: list[Measurement] = []
        for group in order:
            if number == 0 and not self._fits(group):
                self.complete = False
                continue
            self._progress(Step(group, number + 1, 1 - self._left() / self._seconds))
            effort = Effort(self._slice, self._thorough, self._clients)
            try:
                result = await measure_group(self._definition, group, self._machine, effort)
            except HeadraceError:
                if not self.measured:
                    raise
                self.complete = False  # such as no memory for so many processes: the others are still good
                continue
            self._clients, self._took[group] = result.clients, result.seconds
            self.disturbances.append(result.disturbance)
            kept += result.measured
            if number == 0:
                self.measured += result.measured
        if number:
            self.measured += kept
        return kept

    def _left(self) -> float:
        return self._seconds - (time.monotonic() - self._begin)

    def _fits(self, group: Sequence[Layout]) -> bool:
        """Whether there are time and memory for a group that has not been measured yet."""
        if not self.measured:
            return True
        first = self.measured[0]
        need = first.memory / first.candidate.layout.copies * max(layout.copies for layout in group)
        in_time = self._thorough or max(self._took.values()) <= self._left()
        return in_time and need <= MEMORY_SHARE * memory_bytes()
