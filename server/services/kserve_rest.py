"""``headrace.rest.v1.KserveService``: the KServe v2 protocol with Triton's extensions, over REST."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import orjson

from headrace.server.codecs.compression import (
    ENCODINGS,
    check_encoding,
    choose_encoding,
    compress,
    decompress,
)
from headrace.server.codecs.kserve_errors import decoupled_error, error_json
from headrace.server.codecs.kserve_messages import to_plain
from headrace.server.codecs.kserve_metadata import encode_model_metadata, encode_server_metadata
from headrace.server.codecs.kserve_repository import (
    check_repository,
    decode_json_index,
    decode_json_load,
    decode_json_unload,
    index_json,
)
from headrace.server.codecs.kserve_rest_raw import decode_raw_request
from headrace.server.codecs.kserve_rest_request import BinaryOutputs, decode_json_request, split_body
from headrace.server.codecs.kserve_rest_response import encode_response
from headrace.server.codecs.kserve_statistics import encode_statistics, statistics_json
from headrace.server.errors import (
    HeadraceError,
    InvalidArgumentError,
    QueueFullError,
    UnsupportedError,
)
from headrace.server.services.call import HttpReply
from headrace.server.tasks.infer import infer
from headrace.server.tasks.offload import call_by_size

if TYPE_CHECKING:
    from headrace.rest.v1 import kserve_pb2 as pb
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.tensors import InferRequest, InferResponse
    from headrace.server.tasks.tokenization import Tokenizing

SIZE_HEADER: Final = "inference-header-content-length"


class KserveService:
    """Implementation of the facade.

    Args:
        repository: the models.
        tokenizing: threads for texts and long computations.
        server_id: name in the server's metadata.
        max_body_bytes: greatest size of a decompressed body.
    """

    def __init__(
        self, repository: Repository, tokenizing: Tokenizing, server_id: str, max_body_bytes: int
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._max_body_bytes = max_body_bytes
        self._metadata = to_plain(encode_server_metadata(server_id))

    async def ServerMetadata(self, request: pb.KserveServiceServerMetadataRequest, call: Call) -> HttpReply:
        """Answer name, version and extensions of the server."""
        return _json(self._metadata)

    async def ServerLive(self, request: pb.KserveServiceServerLiveRequest, call: Call) -> HttpReply:
        """Answer: a process that answers is alive."""
        return _json({"live": True})

    async def ServerReady(self, request: pb.KserveServiceServerReadyRequest, call: Call) -> HttpReply:
        """Answer 200 when every model that should serve does, else 400."""
        ready = self._repository.all_ready()
        return _json({"ready": ready}, 200 if ready else 400)

    async def ListModels(self, request: pb.KserveServiceListModelsRequest, call: Call) -> HttpReply:
        """Answer the names of the models that are ready."""
        return _json({"models": sorted({model.name for model in self._repository.ready_models()})})

    async def ModelMetadata(self, request: pb.KserveServiceModelMetadataRequest, call: Call) -> HttpReply:
        """Answer a model's tensors, and its ready versions or the one that was asked for."""
        model = call.model = self._repository.get(request.model, request.version)
        versions = [model.version] if request.version else self._repository.versions(request.model)
        return _json(to_plain(encode_model_metadata(model, versions)))

    async def ModelReady(self, request: pb.KserveServiceModelReadyRequest, call: Call) -> HttpReply:
        """Answer 200 when a model version is ready, 404 for an unknown model, else 400."""
        if self._repository.is_ready(request.model, request.version):
            return _json({"name": request.model, "ready": True})
        if not any(entry.name == request.model for entry in self._repository.index(ready=False)):
            self._repository.get(request.model)
        msg = "Model version not ready"
        raise InvalidArgumentError(msg, model=request.model)

    async def ModelConfig(self, request: pb.KserveServiceModelConfigRequest, call: Call) -> HttpReply:
        """Answer a model's configuration with every default."""
        model = call.model = self._repository.get(request.model, request.version)
        return _json(to_plain(model.config))

    async def ModelStatistics(self, request: pb.KserveServiceModelStatisticsRequest, call: Call) -> HttpReply:
        """Answer the counters of one model version, of all of a model, or of all models."""
        models = self._repository.statistics(request.model, request.version)
        return _json(statistics_json(encode_statistics(models)))

    async def ModelInfer(self, request: pb.KserveServiceModelInferRequest, call: Call) -> HttpReply:
        """Run a model once."""
        model = call.model = self._repository.get(request.model, request.version)
        if model.generation is not None:
            raise decoupled_error("HTTP end point", model.name)
        headers, body = call.headers, request.body.data
        coding = check_encoding(headers.get("content-encoding", ""))
        # What a compressed body will grow to is not known before.
        size = sys.maxsize if coding else len(body)
        decoded, binary = await call_by_size(
            self._tokenizing,
            size,
            self._decode,
            model,
            request.version,
            body,
            coding,
            headers.get(SIZE_HEADER),
        )
        response = await infer(self._tokenizing, model, decoded)
        size = sum(len(output.data) for output in response.outputs)
        accepted = choose_encoding(headers.get("accept-encoding", ""))
        return await call_by_size(self._tokenizing, size, _infer_reply, response, binary, accepted)

    def _decode(
        self, model: Model, version: str, body: bytes, coding: str, json_size: str | None
    ) -> tuple[InferRequest, BinaryOutputs]:
        if coding:
            body = decompress(body, coding, self._max_body_bytes)
        document, data = split_body(body, json_size)
        if document:
            return decode_json_request(model.name, version, document, data)
        return decode_raw_request(model, version, data), BinaryOutputs(every=True)

    async def RepositoryIndex(self, request: pb.KserveServiceRepositoryIndexRequest, call: Call) -> HttpReply:
        """Answer the models of the repositories with the states of their versions."""
        ready = decode_json_index(request.body.data)
        return _json(index_json(self._repository.index(ready=ready)))

    async def RepositoryModelLoad(
        self, request: pb.KserveServiceRepositoryModelLoadRequest, call: Call
    ) -> HttpReply:
        """Load or reload a model; answered when it is ready."""
        check_repository(request.repository)
        body = request.body.data
        overrides = await call_by_size(self._tokenizing, len(body), decode_json_load, body)
        await self._repository.load(request.model, config=overrides.config, files=overrides.files)
        return HttpReply(b"")

    async def RepositoryModelUnload(
        self, request: pb.KserveServiceRepositoryModelUnloadRequest, call: Call
    ) -> HttpReply:
        """Unload a model."""
        check_repository(request.repository)
        dependents = decode_json_unload(request.body.data)
        await self._repository.unload(request.model, unload_dependents=dependents)
        return HttpReply(b"")

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with the one member that KServe and Triton clients read."""
        headers: tuple[tuple[str, str], ...] = ()
        if isinstance(error, QueueFullError):
            headers = (("retry-after", "1"),)
        elif isinstance(error, UnsupportedError) and "encoding" in error.metadata:
            headers = (("accept-encoding", ", ".join(ENCODINGS)),)
        status, content = error_json(error)
        return HttpReply(content, status=status, headers=headers)


def _json(value: Any, status: int = 200) -> HttpReply:
    return HttpReply(orjson.dumps(value), status=status)


def _infer_reply(response: InferResponse, binary: BinaryOutputs, coding: str) -> HttpReply:
    """Encode and, if ``coding`` is not empty, compress; the size header is about the plain body."""
    content, json_size = encode_response(response, binary)
    headers: list[tuple[str, str]] = []
    content_type = "application/json"
    if json_size is not None:
        content_type = "application/octet-stream"
        headers.append((SIZE_HEADER, str(json_size)))
    if coding:
        content = compress(content, coding)
        headers.append(("content-encoding", coding))
    return HttpReply(content, content_type=content_type, headers=tuple(headers))
