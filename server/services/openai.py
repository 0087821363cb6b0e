"""The OpenAI API over REST: embeddings and models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.server.codecs import openai
from headrace.server.codecs.http_headers import retry_headers
from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_requests import json_object
from headrace.server.services.call import ORIGINAL_PATH, Call, HttpReply

if TYPE_CHECKING:
    from headrace.rest.v1 import openai_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.registry import Repository
    from headrace.server.services.pooling_requests import PoolingRequests


class OpenaiService:
    """Facade of ``headrace.rest.v1.OpenaiService``.

    Args:
        repository: the models.
        pooling: answers embeddings.
    """

    def __init__(self, repository: Repository, pooling: PoolingRequests) -> None:
        self._repository = repository
        self._pooling = pooling

    async def CreateEmbedding(
        self, request: openai_pb2.OpenaiServiceCreateEmbeddingRequest, call: Call
    ) -> HttpReply:
        """Embed texts, token ids or conversations; inputs that are too long are cut."""
        value = json_object("", request.body.data)  # of any content type: `curl -d` names another
        return await self._pooling.embeddings(value, call)

    async def ListModels(
        self,
        request: openai_pb2.OpenaiServiceListModelsRequest,
        call: Call,
    ) -> HttpReply:
        """List the ready models; below ``/models/{id}/proxy`` only that one."""
        return HttpReply(encode({"object": "list", "data": self._cards(call)}))

    async def GetModel(self, request: openai_pb2.OpenaiServiceGetModelRequest, call: Call) -> HttpReply:
        """Describe one model, ``name`` or ``name@version``."""
        model = call.model = self._repository.resolve(request.model)
        return HttpReply(encode(openai.model_card(request.model, model, self._repository.created)))

    def _cards(self, call: Call) -> list[dict[str, Any]]:
        created = self._repository.created
        if call.model_id:
            model = call.model = self._repository.resolve(call.model_id)
            return [openai.model_card(call.model_id, model, created)]
        models = self._repository.ready_models()
        newest = {model.name: model.version for model in models}  # they come in ascending order
        return [
            openai.model_card(
                model.name if model.version == newest[model.name] else f"{model.name}@{model.version}",
                model,
                created,
            )
            for model in models
        ]

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with OpenAI's error object."""
        embeddings = "embeddings" in call.headers.get(ORIGINAL_PATH, "")
        status, body = openai.error_json(error, embeddings=embeddings)
        return HttpReply(body, status=status, headers=retry_headers(status))
