"""A model's tensors in three forms: what the runtime found, the configuration's fields, and what callers see.

The configuration leaves the batch dimension out of ``dims`` when ``max_batch_size`` is above 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from headrace.kserve.v2.data_type_pb2 import DataType
from headrace.kserve.v2.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from headrace.runtimes.base import TensorSpec
from headrace.runtimes.datatypes import BYTES
from headrace.runtimes.wire import Loaded
from headrace.server.repository.model import ModelTensor

ConfigTensor = ModelInput | ModelOutput


def config_type(datatype: str) -> DataType:
    """Translate a KServe datatype to the configuration's enum."""
    name = "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
    return cast("DataType", DataType.Value(name))


def kserve_type(data_type: DataType) -> str:
    """Translate the configuration's enum to the KServe datatype."""
    name = DataType.Name(data_type).removeprefix("TYPE_")
    return BYTES if name == "STRING" else name


def can_batch(loaded: Loaded) -> bool:
    """Whether the first dimension of every tensor varies, so that it can be the batch."""
    tensors = (*loaded.inputs, *loaded.outputs)
    return bool(tensors) and all(spec.shape[:1] == (-1,) for spec in tensors)


def fill_tensor(tensor: ConfigTensor, spec: TensorSpec, *, batching: bool) -> None:
    """Write what the runtime found into the configuration's fields."""
    tensor.name = spec.name
    tensor.data_type = config_type(spec.datatype)
    dims = spec.shape[1:] if batching else spec.shape
    del tensor.dims[:]
    tensor.ClearField("reshape")
    # `dims` may not be empty: a tensor with nothing but the batch has one element a row, as Triton writes it.
    tensor.dims.extend(dims or (1,))
    if not dims:
        tensor.reshape.SetInParent()


def full_shape(tensor: ConfigTensor, *, batching: bool) -> tuple[int, ...]:
    """Return the shape of the model's own tensor that a configured one stands for."""
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return (-1, *dims) if batching else tuple(dims)


def declared(tensors: Sequence[ConfigTensor], *, batching: bool) -> list[TensorSpec]:
    """Return configured tensors as the runtime sees them."""
    return [
        TensorSpec(tensor.name, kserve_type(tensor.data_type), full_shape(tensor, batching=batching))
        for tensor in tensors
    ]


def model_inputs(config: ModelConfig) -> tuple[ModelTensor, ...]:
    """Return the inputs that callers see."""
    return tuple(
        ModelTensor(
            name=tensor.name,
            datatype=kserve_type(tensor.data_type),
            dims=tuple(tensor.dims),
            optional=tensor.optional,
            reshape=_reshape(tensor),
        )
        for tensor in config.input
    )


def model_outputs(config: ModelConfig, labels: Mapping[str, tuple[str, ...]]) -> tuple[ModelTensor, ...]:
    """Return the outputs that callers see; ``labels`` has the class names by output."""
    return tuple(
        ModelTensor(
            name=tensor.name,
            datatype=kserve_type(tensor.data_type),
            dims=tuple(tensor.dims),
            labels=labels.get(tensor.name, ()),
            reshape=_reshape(tensor),
        )
        for tensor in config.output
    )


def describe(specs: Sequence[TensorSpec]) -> str:
    """List tensors for a message."""
    return ", ".join(f"'{spec.name}' {spec.datatype} {shape_text(spec.shape)}" for spec in specs) or "none"


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as Triton's messages do."""
    return f"[{','.join(map(str, shape))}]"


def _reshape(tensor: ConfigTensor) -> tuple[int, ...] | None:
    if not tensor.HasField("reshape") or list(tensor.reshape.shape) == list(tensor.dims):
        return None
    return tuple(tensor.reshape.shape)
