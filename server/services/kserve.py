"""``inference.GRPCInferenceService``: the KServe v2 protocol with Triton's extensions, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.server.codecs.kserve_errors import decoupled_error
from headrace.server.codecs.kserve_generate_fields import text_request
from headrace.server.codecs.kserve_metadata import encode_model_metadata, encode_server_metadata
from headrace.server.codecs.kserve_received import ReceivedInfer, receive
from headrace.server.codecs.kserve_repository import (
    check_repository,
    decode_load,
    decode_unload,
    encode_index,
)
from headrace.server.codecs.kserve_statistics import encode_statistics
from headrace.server.codecs.tensors import decode_request, encode_response, fill_response
from headrace.server.errors import (
    DeadlineExceededError,
    ExecutionFailedError,
    HeadraceError,
    QueueTimeoutError,
    TensorRefusedError,
    UnsupportedError,
    WorkerCrashedError,
)
from headrace.server.services.ordered import answer_as_they_come
from headrace.server.tasks.infer import infer
from headrace.server.tasks.infer_generate import start_text, text_responses
from headrace.server.tasks.offload import call_by_size

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.tensors import InferRequest, InferResponse

STREAM_LIMIT: Final = 256
"""Requests of one ModelStreamInfer call that are under way at the same time."""

_AFTER_SCHEDULING: Final = (
    ExecutionFailedError,
    WorkerCrashedError,
    QueueTimeoutError,
    DeadlineExceededError,
    TensorRefusedError,
)
"""What ends a request that the scheduler had taken; Triton reports these on a stream in more detail."""

_FINAL: Final = "triton_final_response"
_EMPTY_FINAL: Final = "triton_enable_empty_final_response"


def _not_offered(what: str) -> Callable[[Any, Any, Call], Awaitable[NoReturn]]:
    async def refuse(self: object, request: object, call: Call) -> NoReturn:
        raise UnsupportedError(f"{what} is not offered by this server")

    return refuse


class GRPCInferenceService:
    """Implementation of the service.

    Args:
        repository: the models.
        generating: the generate task, with the threads for texts and long computations.
        server_id: name in the server's metadata.

    Attributes:
        parsers: what parses the requests of methods that do not take the message itself.
    """

    parsers: Final = MappingProxyType({"ModelInfer": receive, "ModelStreamInfer": receive})

    def __init__(self, repository: Repository, generating: Generating, server_id: str) -> None:
        self._repository = repository
        self._generating = generating
        self._tokenizing = generating.tokenizing
        self._metadata = encode_server_metadata(server_id)

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """Answer: a process that answers is alive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Answer whether every model that should serve does."""
        return pb.ServerReadyResponse(ready=self._repository.all_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Answer whether a model version serves; an unknown one does not."""
        return pb.ModelReadyResponse(ready=self._repository.is_ready(request.name, request.version))

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        """Answer name, version and extensions of the server."""
        return self._metadata

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """Answer a model's tensors, and its ready versions or the one that was asked for."""
        model = call.model = self._repository.get(request.name, request.version)
        versions = [model.version] if request.version else self._repository.versions(request.name)
        return encode_model_metadata(model, versions)

    async def ModelConfig(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """Answer a model's configuration with its defaults filled in."""
        model = call.model = self._repository.get(request.name, request.version)
        return pb.ModelConfigResponse(config=model.config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        """Answer the counters of one model version, of all of a model, or of all models."""
        return encode_statistics(self._repository.statistics(request.name, request.version))

    async def ModelInfer(self, request: ReceivedInfer, call: Call) -> pb.ModelInferResponse:
        """Run a model that answers once."""
        return encode_response(await self._infer(request, call))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[ReceivedInfer], call: Call
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Run models: one answer for each request, in their order, or one for each piece of text.

        The answers to models that generate text come as they are there, between others. A failed request is
        answered by its error's text and the stream goes on. With the metadata ``triton_grpc_error: true`` the
        first failure of a model ends the stream with its status instead.
        """
        ends = call.headers.get("triton_grpc_error") == "true"

        async def answer(request: ReceivedInfer) -> pb.ModelStreamInferResponse:
            message = pb.ModelStreamInferResponse()
            reply = message.infer_response
            try:
                fill_response(reply, await self._infer(request, call))
            except HeadraceError as error:
                scheduled = isinstance(error, _AFTER_SCHEDULING)
                if ends and scheduled:
                    raise
                return _failure(request.message, error, scheduled=scheduled)
            reply.parameters[_FINAL].bool_param = True
            return message

        def several(request: ReceivedInfer) -> AsyncGenerator[pb.ModelStreamInferResponse] | None:
            message = request.message
            try:
                model = self._repository.get(message.model_name, message.model_version)
            except HeadraceError:  # it is the answer
                return None
            if model.generation is None:
                return None
            call.model = model
            return self._generate(model, request, ends=ends)

        answers = answer_as_they_come(requests, answer, several, STREAM_LIMIT)
        async with aclosing(answers) as responses:
            async for response in responses:
                yield response

    async def _generate(
        self, model: Model, received: ReceivedInfer, *, ends: bool
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Yield the answers of a model that generates text.

        The last one is marked as final or, where the request asks for that, an empty one behind it.
        """
        request = received.message
        empty = _EMPTY_FINAL in request.parameters and request.parameters[_EMPTY_FINAL].bool_param
        scheduled = False
        try:
            decoded = await self._decode(received)
            size = sum(len(tensor.data) for tensor in decoded.inputs)
            asked = await call_by_size(self._tokenizing, size, text_request, model, decoded)
            # The caller's own deadline ends the whole call, and with it this.
            async with await start_text(self._generating, model, asked) as stream:
                scheduled = True
                async for response, last in text_responses(model, asked, stream):
                    message = pb.ModelStreamInferResponse()
                    fill_response(message.infer_response, response)
                    message.infer_response.parameters[_FINAL].bool_param = last and not empty
                    yield message
        except HeadraceError as error:
            if ends and scheduled:
                raise
            yield _failure(request, error, scheduled=scheduled)
            return
        if empty:
            message = pb.ModelStreamInferResponse()
            _end(message.infer_response, request)
            yield message

    async def _infer(self, request: ReceivedInfer, call: Call) -> InferResponse:
        message = request.message
        model = call.model = self._repository.get(message.model_name, message.model_version)
        if model.generation is not None:
            raise decoupled_error("ModelInfer RPC", model.name)
        return await infer(self._tokenizing, model, await self._decode(request))

    async def _decode(self, request: ReceivedInfer) -> InferRequest:
        # Raw data is passed on as it is; typed data is converted value by value.
        converted = 0 if request.raw else request.message.ByteSize()
        return await call_by_size(self._tokenizing, converted, decode_request, *request)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        """Answer the models of the repositories with the states of their versions."""
        check_repository(request.repository_name)
        return encode_index(self._repository.index(ready=request.ready))

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Load or reload a model; answered when it is ready."""
        check_repository(request.repository_name)
        overrides = decode_load(request.parameters)
        await self._repository.load(request.model_name, config=overrides.config, files=overrides.files)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model."""
        check_repository(request.repository_name)
        dependents = decode_unload(request.parameters)
        await self._repository.unload(request.model_name, unload_dependents=dependents)
        return pb.RepositoryModelUnloadResponse()

    SystemSharedMemoryStatus = _not_offered("system shared memory")
    SystemSharedMemoryRegister = _not_offered("system shared memory")
    SystemSharedMemoryUnregister = _not_offered("system shared memory")
    CudaSharedMemoryStatus = _not_offered("CUDA shared memory")
    CudaSharedMemoryRegister = _not_offered("CUDA shared memory")
    CudaSharedMemoryUnregister = _not_offered("CUDA shared memory")
    TraceSetting = _not_offered("Triton's trace extension")
    LogSettings = _not_offered("Triton's logging extension")


def _failure(
    request: pb.ModelInferRequest, error: HeadraceError, *, scheduled: bool
) -> pb.ModelStreamInferResponse:
    """Return the answer to a request that failed; Triton says more of what the scheduler had taken."""
    message = pb.ModelStreamInferResponse(error_message=error.message)
    if scheduled:
        _end(message.infer_response, request)
    else:
        message.infer_response.id = request.id
    return message


def _end(reply: pb.ModelInferResponse, request: pb.ModelInferRequest) -> None:
    """Fill in what the last response to a request has when it has no outputs."""
    reply.id = request.id
    reply.model_name, reply.model_version = request.model_name, request.model_version
    reply.parameters[_FINAL].bool_param = True
