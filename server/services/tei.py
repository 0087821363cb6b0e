"""Text Embeddings Inference over REST, and what other systems offer under the same paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.server.codecs.json_body import given, parse
from headrace.server.codecs.openai_requests import as_object
from headrace.server.services import pooling_requests
from headrace.server.services.call import ORIGINAL_PATH, Call, HttpReply
from headrace.server.services.pooling_requests import VLLM
from headrace.server.services.tei_requests import TeiRequests, error_reply

if TYPE_CHECKING:
    from headrace.rest.v1 import tei_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.services.pooling_requests import PoolingRequests


_VLLM_RANKING: Final = frozenset({"/v1/rerank", "/v2/rerank"})
"""Paths that are vLLM's own: a body without ``texts`` and ``documents`` is wrong in its form there."""


class TeiService:
    """Facade of ``headrace.rest.v1.TeiService``.

    Args:
        requests: answers them.
        pooling: answers rankings of ``documents``.
    """

    def __init__(self, requests: TeiRequests, pooling: PoolingRequests) -> None:
        self._requests = requests
        self._pooling = pooling

    async def Embed(self, request: tei_pb2.TeiServiceEmbedRequest, call: Call) -> HttpReply:
        """Embed one or many texts or lists of token ids; with ``texts`` as version 1 of Cohere's API does."""
        value = parse(request.body.data)
        members = given(value)
        if "texts" in members and "inputs" not in members:
            call.form = VLLM
            return await self._pooling.cohere_embed(as_object(value), call, "1")
        return await self._requests.embed(value, call)

    async def Rerank(self, request: tei_pb2.TeiServiceRerankRequest, call: Call) -> HttpReply:
        """Order ``texts`` by relevance to a query; with ``documents`` as Cohere, Jina and vLLM do it."""
        path = call.headers.get(ORIGINAL_PATH, "").partition("?")[0]
        call.form = VLLM if path in _VLLM_RANKING else ""
        value = parse(request.body.data)
        members = given(value)
        if "texts" in members:
            call.form = ""
        elif "documents" in members:
            call.form = VLLM
        if call.form == VLLM:
            return await self._pooling.rank(as_object(value), call)
        return await self._requests.rerank(value, call)

    async def Predict(self, request: tei_pb2.TeiServicePredictRequest, call: Call) -> HttpReply:
        """Label texts, or run a classical model on arrays: the kind of the model decides."""
        data = request.body.data
        return await self._requests.predict(parse(data), call, len(data))

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``, or vLLM's error object where the body was not TEI's."""
        if call.form == VLLM:
            return pooling_requests.error_reply(error, call)
        return error_reply(error, call)
