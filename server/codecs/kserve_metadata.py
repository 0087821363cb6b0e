"""What a server and a model say about themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from headrace.kserve.v2.grpc_service_pb2 import ModelMetadataResponse, ServerMetadataResponse
from headrace.server.tasks.infer_validation import full_dims

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor

EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""The Triton extensions that this server has."""

VERSION: Final = version("headrace")


def encode_server_metadata(server_id: str) -> ServerMetadataResponse:
    """Encode the server's metadata; ``server_id`` is its name."""
    return ServerMetadataResponse(name=server_id, version=VERSION, extensions=EXTENSIONS)


def encode_model_metadata(model: Model, versions: Sequence[int]) -> ModelMetadataResponse:
    """Encode a model's metadata; ``versions`` are the ready ones that the caller asked about."""
    return ModelMetadataResponse(
        name=model.name,
        versions=map(str, versions),
        platform=model.platform,
        inputs=_tensors(model, model.inputs),
        outputs=_tensors(model, model.outputs),
    )


def _tensors(model: Model, specs: Iterable[ModelTensor]) -> list[ModelMetadataResponse.TensorMetadata]:
    return [
        ModelMetadataResponse.TensorMetadata(
            name=spec.name, datatype=spec.datatype, shape=full_dims(model, spec)
        )
        for spec in specs
    ]
