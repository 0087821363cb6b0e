"""``headrace.v1.PredictionService``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headrace.server.codecs import typed
from headrace.server.repository.lookup import DEFAULT_NAMES
from headrace.server.repository.model import Task
from headrace.server.tasks.predict import predict
from headrace.server.tasks.tensors import InferRequest, InputTensor, RequestedOutput
from headrace.v1 import common_pb2, prediction_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.tokenization import Tokenizing


class PredictionService:
    """Runs any model on tensors.

    Args:
        repository: the models.
        tokenizing: threads for texts, and for what is too long for the event loop.
    """

    def __init__(self, repository: Repository, tokenizing: Tokenizing) -> None:
        self._repository = repository
        self._tokenizing = tokenizing

    async def Predict(
        self, request: prediction_pb2.PredictRequest, call: Call
    ) -> prediction_pb2.PredictResponse:
        """Run a model once; more rows than it takes at a time are run in turns."""
        started = time.monotonic_ns()
        model = call.model = self._resolve(request.model)
        result = await predict(
            self._tokenizing,
            model,
            InferRequest(
                model.name,
                str(model.version),
                inputs=[
                    InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.raw)
                    for tensor in request.inputs
                ],
                outputs=[RequestedOutput(name) for name in request.output_names],
            ),
        )
        return prediction_pb2.PredictResponse(
            outputs=[
                common_pb2.Tensor(
                    name=output.name, datatype=output.datatype, shape=output.shape, raw=output.data
                )
                for output in result.outputs
            ],
            model=model.name,
            model_version=str(model.version),
            signature=_signature(model) if request.include_signature else None,
            # Where a tensor request waited and ran is in the model's statistics.
            timings=common_pb2.Timings(total_duration=typed.duration(time.monotonic_ns() - started)),
        )

    async def GetSignature(
        self, request: prediction_pb2.GetSignatureRequest, call: Call
    ) -> prediction_pb2.GetSignatureResponse:
        """Tell what a model accepts and returns."""
        model = call.model = self._resolve(request.model)
        return prediction_pb2.GetSignatureResponse(
            model=model.name, model_version=str(model.version), signature=_signature(model)
        )

    def _resolve(self, name: str) -> Model:
        """Return the model: any by name, else the default of the tasks that work on tensors."""
        tasks = (Task.PREDICT, Task.TENSORS) if name in DEFAULT_NAMES else ()
        return self._repository.resolve(name, *tasks)


def _signature(model: Model) -> common_pb2.Signature:
    def specs(tensors: tuple[ModelTensor, ...]) -> list[common_pb2.TensorSpec]:
        batch = [-1] if model.batching else []
        return [
            common_pb2.TensorSpec(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=[*batch, *tensor.dims],
                optional=tensor.optional,
            )
            for tensor in tensors
        ]

    return common_pb2.Signature(inputs=specs(model.inputs), outputs=specs(model.outputs))
