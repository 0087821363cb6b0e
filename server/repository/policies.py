"""How requests for a model are queued and batched, from its configuration."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.server.scheduling.policy import BatchingPolicy, QueuePolicy

if TYPE_CHECKING:
    from headrace.kserve.v2.model_config_pb2 import ModelConfig, ModelQueuePolicy
    from headrace.runtimes.base import Padding
    from headrace.server.repository.definition import ModelDefinition

ROWS: Final = "max_batch_rows"

CPU_BATCH_TOKENS: Final = 256
"""Tokens in a batch of texts on a CPU, where the configuration says nothing. MiniLM costs the same for
each token from 60 tokens on, however many texts share the batch: only short texts gain from company."""

CUDA_BATCH_TOKENS: Final = 16_384
"""The same on a GPU, which wants all the work it can get: the default of Text Embeddings Inference."""


CPU_OVERHEAD_TOKENS: Final = 6
"""What a batch costs besides its tokens, in tokens. A run of MiniLM costs 11 (2.4 ms, a token 0.22); a text
that is left out finds company later, and models of the queue with 4 to 32 callers do best with 6."""

CUDA_OVERHEAD_TOKENS: Final = 512
"""The same on a GPU, where a small batch leaves most of it idle. A guess: nothing was measured on one."""


class TextLimits(NamedTuple):
    """What batches of texts may hold and cost, as ``BatchingPolicy`` has it."""

    max_tokens: int
    overhead_tokens: int
    padding: Padding


def text_limits(definition: ModelDefinition, padding: Padding) -> TextLimits | None:
    """Return the limits of a text model's batches, which pay for ``padding``; None for other models."""
    if definition.text is None:
        return None
    cuda = any(spec.device.startswith("cuda") for spec in definition.specs)
    configured = definition.parameters.get("max_batch_tokens")
    tokens = int(configured) if configured else CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS
    return TextLimits(tokens, CUDA_OVERHEAD_TOKENS if cuda else CPU_OVERHEAD_TOKENS, padding)


def batching_policy(config: ModelConfig, max_queue: int, text: TextLimits | None) -> BatchingPolicy:
    """Translate ``dynamic_batching`` into a policy; ``text`` has texts batched by their tokens.

    The parameter ``max_batch_rows`` bounds what requests make together. A single one may be larger: what a
    request may bring is ``max_batch_size``'s to say.
    """
    dynamic = config.dynamic_batching
    max_rows = max(1, config.max_batch_size)
    if ROWS in config.parameters:
        max_rows = min(max_rows, int(config.parameters[ROWS].string_value))
    return BatchingPolicy(
        max_rows=max_rows,
        max_tokens=text.max_tokens if text else 0,
        padding=text.padding if text else "all",
        overhead_tokens=text.overhead_tokens if text else 0,
        join=config.max_batch_size > 0 and (text is not None or config.HasField("dynamic_batching")),
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
