"""What a configuration says against what the model really has, in one message with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.kserve.v2.data_type_pb2 import DataType
from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import TensorSpec
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.config import print_config
from headrace.server.repository.signature import (
    ConfigTensor,
    can_batch,
    config_type,
    describe,
    fill_tensor,
    full_shape,
    shape_text,
)
from headrace.server.repository.validation import Problem


def check_fit(config: ModelConfig, loaded: Loaded, given: ModelConfig, label: str) -> None:
    """Refuse a configuration that does not fit the model.

    Args:
        config: with inputs, outputs and ``max_batch_size`` completed.
        loaded: the tensors of the model.
        given: what the user wrote; the fitting configuration is printed from it.
        label: what messages call the configuration.

    Raises:
        LoadFailedError: every difference, what the model has, and a config.pbtxt that fits.
    """
    problems = list(differences(config, loaded))
    if not problems:
        return
    lines = [f"  {problem.field}: {problem.text}" for problem in problems]
    raise LoadFailedError(
        "\n".join(
            [
                f"{label} does not fit the model:",
                *lines,
                f"The model has inputs {describe(loaded.inputs)}; outputs {describe(loaded.outputs)}.",
                "This config.pbtxt fits:",
                print_config(fitting(given, loaded)).rstrip(),
            ]
        ),
        model=config.name,
    )


def differences(config: ModelConfig, loaded: Loaded) -> Iterator[Problem]:
    """Yield where the configuration and the model differ."""
    batching = config.max_batch_size > 0
    if batching and not can_batch(loaded):
        fixed = next(spec for spec in (*loaded.inputs, *loaded.outputs) if spec.shape[:1] != (-1,))
        yield Problem(
            "max_batch_size",
            f"is {config.max_batch_size}, but the model does not support batching: the first dimension of "
            f"'{fixed.name}' {shape_text(fixed.shape)} does not vary; it must be 0",
        )
        return  # every shape below would be off by the batch dimension
    yield from _tensors("input", config.input, loaded.inputs, batching=batching)
    yield from _tensors("output", config.output, loaded.outputs, batching=batching)
    named = {tensor.name for tensor in config.input}
    for spec in loaded.inputs:
        if spec.name not in named:
            yield Problem("input", f"{describe([spec])} of the model is missing")


def fitting(given: ModelConfig, loaded: Loaded) -> ModelConfig:
    """Return ``given`` with the tensors that the model has."""
    config = ModelConfig()
    config.CopyFrom(given)
    if not can_batch(loaded):
        config.max_batch_size = 0
        config.ClearField("dynamic_batching")
    batching = config.max_batch_size > 0
    labels = {tensor.name: tensor.label_filename for tensor in given.output}
    del config.input[:]
    del config.output[:]
    for spec in loaded.inputs:
        fill_tensor(config.input.add(), spec, batching=batching)
    for spec in loaded.outputs:
        fill_tensor(config.output.add(label_filename=labels.get(spec.name, "")), spec, batching=batching)
    return config


def _tensors(
    kind: str, tensors: Sequence[ConfigTensor], specs: Sequence[TensorSpec], *, batching: bool
) -> Iterator[Problem]:
    by_name = {spec.name: spec for spec in specs}
    for tensor in tensors:
        field = f"{kind} '{tensor.name}'"
        spec = by_name.get(tensor.name)
        if spec is None:
            yield Problem(field, f"the model has no such {kind}; it has {describe(specs)}")
            continue
        if tensor.data_type != config_type(spec.datatype):
            actual = DataType.Name(config_type(spec.datatype))
            yield Problem(
                f"{field}.data_type", f"is {DataType.Name(tensor.data_type)}, but the model has {actual}"
            )
        shape = full_shape(tensor, batching=batching)
        if not _fits(shape, spec.shape):
            source = "reshape" if tensor.HasField("reshape") else "dims"
            configured = shape_text(shape[1:] if batching else shape)
            batch = f", which with a batch stands for {shape_text(shape)}" if batching else ""
            actual = shape_text(spec.shape)
            yield Problem(f"{field}.{source}", f"is {configured}{batch}, but the model has {actual}")


def _fits(configured: Sequence[int], actual: Sequence[int]) -> bool:
    """Whether shapes agree; a size that varies on either side fits any size on the other."""
    return len(configured) == len(actual) and all(
        -1 in (left, right) or left == right for left, right in zip(configured, actual, strict=True)
    )
