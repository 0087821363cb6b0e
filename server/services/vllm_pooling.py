"""vLLM's routes of pooling models: scores of text pairs, and what the model's pooler gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs.openai_requests import json_object
from headrace.server.services.call import Call, HttpReply
from headrace.server.services.pooling_requests import PoolingRequests, error_reply

if TYPE_CHECKING:
    from headrace.rest.v1 import vllm_pb2
    from headrace.server.errors import HeadraceError


class VllmPoolingService:
    """Facade of ``headrace.rest.v1.VllmPoolingService``.

    Args:
        pooling: answers the parsed bodies.
    """

    def __init__(self, pooling: PoolingRequests) -> None:
        self._pooling = pooling

    async def Score(self, request: vllm_pb2.VllmPoolingServiceScoreRequest, call: Call) -> HttpReply:
        """Score pairs of texts."""
        return await self._pooling.score(json_object(request.body.content_type, request.body.data), call)

    async def Pooling(self, request: vllm_pb2.VllmPoolingServicePoolingRequest, call: Call) -> HttpReply:
        """Give token vectors, one vector, or probabilities of each input."""
        return await self._pooling.pooling(json_object(request.body.content_type, request.body.data), call)

    async def CohereEmbed(
        self, request: vllm_pb2.VllmPoolingServiceCohereEmbedRequest, call: Call
    ) -> HttpReply:
        """Embed texts as Cohere's API does."""
        return await self._pooling.cohere_embed(
            json_object(request.body.content_type, request.body.data), call
        )

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with vLLM's error object."""
        return error_reply(error, call)
