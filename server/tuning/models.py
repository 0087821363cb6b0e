"""The factory of a server that tunes: models get the layout that was measured for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import structlog

from headrace.server.repository.instances import MOST_DEFAULT_INSTANCES
from headrace.server.tuning.application import apply
from headrace.server.tuning.cache import Record, TuningCache
from headrace.server.tuning.candidates import free_fields
from headrace.server.tuning.tuner import tune
from headrace.server.tuning.workload import NotTunableError

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition, ModelFactory
    from headrace.server.repository.instances import Machine
    from headrace.server.repository.model import Model
    from headrace.server.tuning.tuner import Step

log = structlog.get_logger(__name__)

Mode = Literal["cached", "load"]


def tuning_mode(setting: Literal["auto", "load", "cached", "off"], machine: Machine) -> Mode | None:
    """Return what the setting ``tuning`` means on ``machine``; None for fixed rules.

    With few cores the rules are right: each has an instance. How many share what is left of larger machines
    depends on the model. GPUs were never measured.
    """
    if setting == "auto":
        return "load" if machine.cores > MOST_DEFAULT_INSTANCES and not machine.gpus else "cached"
    return None if setting == "off" else setting


class Turns:
    """Lets any number of ordinary works go on side by side, and an exclusive one only alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._ordinary = 0
        self._exclusive = False

    @asynccontextmanager
    async def ordinary(self) -> AsyncIterator[None]:
        """Wait until no exclusive work goes on."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._exclusive)
            self._ordinary += 1
        try:
            yield
        finally:
            async with self._changed:
                self._ordinary -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Wait until nothing goes on."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._exclusive and not self._ordinary)
            self._exclusive = True
        try:
            yield
        finally:
            async with self._changed:
                self._exclusive = False
                self._changed.notify_all()


class TunedModels:
    """A model factory in front of another: it chooses layouts, the other starts and stops models.

    Args:
        models: starts and stops models.
        machine: what instances are planned for.
        cache: where measurements are kept.
        mode: ``load`` measures what has not been; ``cached`` only uses what has.
        seconds: for measuring one model.
        tolerance: share of the processors that other programs may use meanwhile; what was measured on a
            busier machine is neither used nor kept.
    """

    def __init__(
        self,
        models: ModelFactory,
        machine: Machine,
        cache: TuningCache,
        mode: Mode,
        *,
        seconds: float,
        tolerance: float,
    ) -> None:
        self._models = models
        self._machine = machine
        self._cache = cache
        self._mode = mode
        self._seconds = seconds
        self._tolerance = tolerance
        self._turns = Turns()

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        """Choose a layout if the configuration leaves one open, and start the model.

        Models are measured one after another, and none is started meanwhile: both would disturb.

        Raises:
            LoadFailedError: with the reason; nothing is left running.
        """
        tuned = await self._tuned(definition)
        async with self._turns.ordinary():
            return await self._models.build(tuned, on_failed)

    async def dispose(self, model: Model) -> None:
        """Let the model's admitted requests finish, then end its workers."""
        await self._models.dispose(model)

    async def _tuned(self, definition: ModelDefinition) -> ModelDefinition:
        """Return ``definition`` with the chosen layout, or as it is where there is none."""
        if not free_fields(definition):
            return definition
        record = await asyncio.to_thread(self._cache.read, definition)
        if record is None and self._mode == "load":
            async with self._turns.exclusive():
                record = await self._measure(definition)
        if record is None:
            return definition
        log.info(
            "model tuned", model=definition.name, layout=str(record.chosen.candidate.layout),
            limit=record.chosen.candidate.limit, throughput=round(record.chosen.throughput, 1),
            before=round(record.measured[0].throughput, 1), lone_ms=round(record.chosen.lone_ms, 2),
        )  # fmt: skip
        return apply(definition, record.chosen.candidate, self._machine)

    async def _measure(self, definition: ModelDefinition) -> Record | None:
        name, started = definition.name, time.monotonic()

        def progress(step: Step) -> None:
            log.info("tuning", model=name, layouts=", ".join(map(str, step.layouts)))

        try:
            outcome = await tune(
                definition, self._machine, seconds=self._seconds, thorough=False, progress=progress
            )
        except NotTunableError as error:
            log.warning("model not tuned", model=name, reason=str(error))
            return None
        others = round(outcome.disturbance, 2)
        log.info("tuning ended", model=name, seconds=round(time.monotonic() - started, 1), others=others)
        if outcome.disturbance > self._tolerance:
            reason = f"other programs used {others:.0%} of the processors meanwhile"
            log.warning("model not tuned", model=name, reason=reason)
            return None
        record = outcome.record(definition, self._cache.facts)
        try:
            await asyncio.to_thread(self._cache.write, definition, record)
        except OSError as error:
            log.warning("tuning not kept", model=name, reason=str(error))
        return record
