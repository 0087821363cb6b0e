"""How Text Embeddings Inference describes a server and its model, over REST and gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from headrace.runtimes.pooling import SPLADE
from headrace.server.repository.model import Task
from headrace.server.tasks.classify import label_names

if TYPE_CHECKING:
    from headrace.kserve.v2.model_config_pb2 import ModelConfig
    from headrace.server.repository.model import Model

TEXT_TASKS: Final = (Task.EMBED, Task.RERANK, Task.CLASSIFY)
"""Kinds of models that this family serves; the first that has a default model is described."""

_GRAPHS: Final = (("fp16", "float16"), ("uint8", "uint8"), ("int8", "int8"), ("quantized", "int8"))
"""Part of the names in ``runtimes.onnx.files.NAMES`` → datatype of the weights; the first that fits."""


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The limits of the server.

    Attributes:
        max_concurrent_requests: inputs that may wait for a model.
        max_client_batch_size: inputs of one request.
        tokenization_workers: threads that tokenise.
    """

    max_concurrent_requests: int
    max_client_batch_size: int
    tokenization_workers: int

    def describe(self, model: Model) -> dict[str, Any]:
        """Return the body of ``GET /info``; the model takes text."""
        settings = model.text
        batch = model.batcher.policy if model.batcher is not None else None
        return {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": _dtype(model.config),
            "served_model_name": model.name,
            "model_type": _model_type(model),
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_input_length": settings.max_tokens if settings is not None else 0,
            "max_batch_tokens": batch.max_tokens if batch is not None else 0,
            "max_batch_requests": model.max_batch_size or None,
            "max_client_batch_size": self.max_client_batch_size,
            "auto_truncate": True,
            "tokenization_workers": self.tokenization_workers,
            "version": version("headrace"),
            "sha": None,
            "docker_label": None,
        }


def _dtype(config: ModelConfig) -> str:
    """Return the datatype of the weights: Torch's by parameter, an ONNX graph's by the name of its file."""
    if "dtype" in config.parameters:
        return config.parameters["dtype"].string_value
    name = config.default_model_filename
    return next((dtype for part, dtype in _GRAPHS if name.endswith(".onnx") and part in name), "float32")


def _model_type(model: Model) -> dict[str, Any]:
    settings = model.text
    if settings is None or model.task is Task.EMBED:
        pooling = "mean" if settings is None else SPLADE if settings.sparse else settings.pooling
        return {"embedding": {"pooling": pooling}}
    width = max(model.outputs[0].dims[-1], 0) if model.outputs and model.outputs[0].dims else 0
    names = {str(index): label for index, label in enumerate(label_names(settings.labels, width))}
    kind = "reranker" if model.task is Task.RERANK else "classifier"
    return {kind: {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}}
