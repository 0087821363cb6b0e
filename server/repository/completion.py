"""Filling in what a configuration leaves out, from what the runtime found in the model's file.

The rules are those of Triton's ONNX Runtime backend, so that a folder that works there means the same here.
"""

from __future__ import annotations

from typing import Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.wire import Loaded
from headrace.server.repository.signature import ConfigTensor, can_batch, fill_tensor, full_shape

DEFAULT_MAX_BATCH_SIZE: Final = 4
"""``max_batch_size`` of a tensor model that can batch and whose configuration names no tensors."""

DEFAULT_MAX_TEXTS: Final = 32
"""``max_batch_size`` of a text model whose configuration has none: the most texts in one batch."""


def complete_tensors(given: ModelConfig, loaded: Loaded, *, dynamic: bool | None, text: bool) -> ModelConfig:
    """Return ``given`` with tensors, batch size and scheduler filled in.

    Args:
        given: the configuration as the user wrote it.
        loaded: the tensors of the model; for a text model those that callers see.
        dynamic: the ``dynamic_batching`` parameter; None leaves the rule as it is.
        text: a text model always batches.

    Whether the result fits the model is for ``comparison`` to say.
    """
    config = ModelConfig()
    config.CopyFrom(given)
    automatic = text or not (given.input and given.output)
    if automatic and config.max_batch_size == 0:
        if text:
            config.max_batch_size = DEFAULT_MAX_TEXTS
        elif can_batch(loaded) and not _names_batch(given, loaded):
            config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
    batching = config.max_batch_size > 0
    if not config.input:
        for spec in loaded.inputs:
            fill_tensor(config.input.add(), spec, batching=batching)
    if not config.output:
        for spec in loaded.outputs:
            fill_tensor(config.output.add(), spec, batching=batching)
    wanted = automatic and config.max_batch_size > 1 if dynamic is None else dynamic
    if dynamic is False:
        config.ClearField("dynamic_batching")
    elif wanted and batching and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()
    return config


def _names_batch(given: ModelConfig, loaded: Loaded) -> bool:
    """Whether tensors that the user did name have all dimensions of the model, the batch among them."""
    ranks = {spec.name: len(spec.shape) for spec in (*loaded.inputs, *loaded.outputs)}
    named: list[ConfigTensor] = [*given.input, *given.output]
    return any(ranks.get(tensor.name) == len(full_shape(tensor, batching=False)) for tensor in named)


def fill_defaults(config: ModelConfig) -> None:
    """Write the defaults that Triton writes into every configuration it answers with."""
    if config.version_policy.WhichOneof("policy_choice") is None or (
        config.version_policy.HasField("latest") and not config.version_policy.latest.num_versions
    ):
        config.version_policy.latest.num_versions = 1
    for buffer in ("input_pinned_memory", "output_pinned_memory"):
        if not config.optimization.HasField(buffer):
            getattr(config.optimization, buffer).enable = True
    unset = config.HasField("dynamic_batching") and not config.dynamic_batching.preferred_batch_size
    if unset and config.max_batch_size > 0:
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
