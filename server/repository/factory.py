"""Builds a running model out of its definition: worker processes, queue and batcher, statistics."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import structlog

from headrace.server.errors import ModelNotReadyError
from headrace.server.repository.model import Model
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy, QueuePolicy
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.workers.group import WorkerGroup
from headrace.server.workers.instance import RestartPolicy

if TYPE_CHECKING:
    from headrace.kserve.v2.model_config_pb2 import ModelConfig, ModelQueuePolicy
    from headrace.server.repository.definition import ModelDefinition

log = structlog.get_logger(__name__)

CPU_BATCH_TOKENS: Final = 256
"""Padded tokens in a batch of texts on a CPU, where the configuration says nothing. MiniLM costs the same for
each token from 60 tokens on, however many texts share the batch: only short texts gain from company."""

CUDA_BATCH_TOKENS: Final = 16_384
"""The same on a GPU, which wants all the work it can get: the default of Text Embeddings Inference."""


class RunningModels:
    """The factory that the repository uses: starts and stops models.

    Args:
        max_queue_size: parts that may wait per model.
        restarts: when dead workers are started again.
    """

    def __init__(self, max_queue_size: int, restarts: RestartPolicy) -> None:
        self._max_queue_size = max_queue_size
        self._restarts = restarts
        self._groups: dict[Model, WorkerGroup] = {}

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        """Start the workers of ``definition`` and return the model that they serve.

        Args:
            definition: what to start.
            on_failed: called when the model's workers died and were given up.

        Raises:
            LoadFailedError: with the reason, nothing is left running.
        """
        statistics = ModelStatistics()
        holder: list[Model] = []

        def restarted() -> None:
            statistics.restarts += 1

        def failed(reason: str) -> None:
            if holder:
                error = ModelNotReadyError(
                    f"model '{definition.name}' has failed: {reason}", model=definition.name
                )
                holder[0].batcher.abort(error)
                on_failed(holder[0], reason)

        group = WorkerGroup(definition.specs, self._restarts, on_restart=restarted, on_failed=failed)
        loaded = await group.start()
        try:
            completed = definition.complete(loaded)
        except BaseException:
            await group.stop()
            raise
        policy = batching_policy(
            completed.config,
            self._max_queue_size,
            text_tokens=_batch_tokens(definition) if definition.text is not None else 0,
        )
        batcher = Batcher(policy, statistics)
        group.attach(batcher)
        model = Model(
            name=definition.name,
            version=definition.version,
            task=definition.task,
            platform=completed.platform,
            config=completed.config,
            max_batch_size=completed.max_batch_size,
            inputs=completed.inputs,
            outputs=completed.outputs,
            batcher=batcher,
            statistics=statistics,
            text=definition.text,
            dimensions=completed.dimensions,
            default=definition.default,
        )
        holder.append(model)
        self._groups[model] = group
        return model

    async def dispose(self, model: Model) -> None:
        """Let the model's admitted requests finish, then end its workers."""
        group = self._groups.pop(model)
        await model.batcher.drain(
            ModelNotReadyError(
                f"Request for unknown model: '{model.name}' is being unloaded", model=model.name
            )
        )
        await group.stop()


def _batch_tokens(definition: ModelDefinition) -> int:
    configured = definition.parameters.get("max_batch_tokens")
    if configured:
        return int(configured)
    cuda = any(spec.device.startswith("cuda") for spec in definition.specs)
    return CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS


def batching_policy(config: ModelConfig, max_queue: int, *, text_tokens: int) -> BatchingPolicy:
    """Translate ``dynamic_batching`` into a policy; ``text_tokens`` > 0 has texts batched by that budget."""
    dynamic = config.dynamic_batching
    max_rows = max(1, config.max_batch_size)
    return BatchingPolicy(
        max_rows=max_rows,
        max_tokens=text_tokens,
        join=config.max_batch_size > 0 and (text_tokens > 0 or config.HasField("dynamic_batching")),
        # A preferred size equal to the maximum says nothing: the batch is full then anyway.
        preferred=tuple(sorted(size for size in dynamic.preferred_batch_size if size < max_rows)),
        delay_us=dynamic.max_queue_delay_microseconds,
        priority_levels=dynamic.priority_levels,
        default_level=dynamic.default_priority_level or 1,
        max_queue=max_queue,
        queue=_queue_policy(dynamic.default_queue_policy),
        level_queues=MappingProxyType(
            {level: _queue_policy(policy) for level, policy in dynamic.priority_queue_policy.items()}
        ),
    )


def _queue_policy(policy: ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        max_size=policy.max_queue_size,
        default_timeout_us=policy.default_timeout_microseconds,
        allow_override=policy.allow_timeout_override,
        delay=policy.timeout_action == policy.DELAY,
    )
