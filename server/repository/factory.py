"""Builds a running model out of its definition: worker processes, queue and scheduler, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from headrace.server.errors import ModelNotReadyError
from headrace.server.repository.model import Model
from headrace.server.repository.policies import batching_policy, text_limits
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.generating import EngineGenerator
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.workers.generation import GenerationInstance
from headrace.server.workers.group import WorkerGroup
from headrace.server.workers.instance import Instance

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec
    from headrace.server.repository.definition import CompletedModel, ModelDefinition
    from headrace.server.workers.supervised import RestartPolicy


class _Running(NamedTuple):
    """What runs of a model beside what callers see."""

    group: WorkerGroup[Instance] | WorkerGroup[GenerationInstance]
    scheduler: Batcher | EngineGenerator


class RunningModels:
    """The factory that the repository uses: starts and stops models.

    Args:
        max_queue_size: parts (or requests for text) that may wait per model.
        restarts: when dead workers are started again.
    """

    def __init__(self, max_queue_size: int, restarts: RestartPolicy) -> None:
        self._max_queue_size = max_queue_size
        self._restarts = restarts
        self._running: dict[Model, _Running] = {}

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        """Start the workers of ``definition`` and return the model that they serve.

        Args:
            definition: what to start.
            on_failed: called when the model's workers died and were given up.

        Raises:
            LoadFailedError: with the reason, nothing is left running.
        """
        statistics = ModelStatistics()
        holder: list[tuple[Model, Batcher | EngineGenerator]] = []

        def restarted() -> None:
            statistics.restarts += 1

        def failed(reason: str) -> None:
            for model, scheduler in holder:
                error = ModelNotReadyError(f"model '{model.name}' has failed: {reason}", model=model.name)
                scheduler.abort(error)
                on_failed(model, reason)

        generation = definition.generation_model
        if generation is not None:
            counters = GenerationStatistics(
                statistics,
                generation.settings.max_tokens,
                block_tokens=generation.spec.block_tokens,
                draft_tokens=generation.spec.draft_tokens,
            )
            max_queue = self._max_queue_size if generation.max_queue is None else generation.max_queue
            generator = EngineGenerator(definition.name, counters, max_queue)
            running, completed = await self._start_engines(definition, generator, restarted, failed)
        else:
            running, completed = await self._start_batches(definition, statistics, restarted, failed)
        scheduler = running.scheduler
        model = Model(
            name=definition.name,
            version=definition.version,
            task=definition.task,
            platform=completed.platform,
            config=completed.config,
            max_batch_size=completed.max_batch_size,
            inputs=completed.inputs,
            outputs=completed.outputs,
            batcher=scheduler if isinstance(scheduler, Batcher) else None,
            statistics=statistics,
            text=definition.text,
            generation=definition.generation,
            generator=scheduler if isinstance(scheduler, EngineGenerator) else None,
            dimensions=completed.dimensions,
            token_vectors=completed.token_vectors,
            default=definition.default,
        )
        self._running[model] = running
        holder.append((model, scheduler))
        return model

    async def dispose(self, model: Model) -> None:
        """Let the model's admitted requests finish, then end its workers."""
        running = self._running.pop(model)
        await running.scheduler.drain(
            ModelNotReadyError(
                f"Request for unknown model: '{model.name}' is being unloaded", model=model.name
            )
        )
        await running.group.stop()

    async def _start_batches(
        self,
        definition: ModelDefinition,
        statistics: ModelStatistics,
        restarted: Callable[[], None],
        failed: Callable[[str], None],
    ) -> tuple[_Running, CompletedModel]:
        """Start the instances of a model that runs batches, and the batcher that feeds them."""

        def create(spec: InstanceSpec, given_up: Callable[[str], None]) -> Instance:
            return Instance(spec, self._restarts, on_restart=restarted, on_failed=given_up)

        group = WorkerGroup(definition.specs, create, failed)
        completed = await _start(group, definition)
        limits = text_limits(definition, completed.padding)
        policy = batching_policy(completed.config, self._max_queue_size, limits)
        batcher = Batcher(policy, statistics)
        for instance in group.instances:
            instance.attach(batcher)
        return _Running(group, batcher), completed

    async def _start_engines(
        self,
        definition: ModelDefinition,
        generator: EngineGenerator,
        restarted: Callable[[], None],
        failed: Callable[[str], None],
    ) -> tuple[_Running, CompletedModel]:
        """Start the engines of a model that generates text, and have ``generator`` feed them."""

        def create(spec: InstanceSpec, given_up: Callable[[str], None]) -> GenerationInstance:
            return GenerationInstance(spec, self._restarts, on_restart=restarted, on_failed=given_up)

        group = WorkerGroup(definition.specs, create, failed)
        completed = await _start(group, definition)
        for engine in group.instances:
            generator.attach(engine)
        return _Running(group, generator), completed


async def _start(
    group: WorkerGroup[Instance] | WorkerGroup[GenerationInstance], definition: ModelDefinition
) -> CompletedModel:
    """Start all workers, and complete the definition from what they found; or leave nothing running."""
    loaded = await group.start()
    try:
        return definition.complete(loaded)
    except BaseException:
        await group.stop()
        raise
