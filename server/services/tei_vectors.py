"""Text Embeddings Inference over REST: vectors of tokens, sparse vectors, similarities, decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs.json_body import parse
from headrace.server.services.call import Call, HttpReply
from headrace.server.services.tei_requests import TeiRequests, error_reply

if TYPE_CHECKING:
    from headrace.rest.v1 import tei_pb2
    from headrace.server.errors import HeadraceError


class TeiVectorsService:
    """Facade of ``headrace.rest.v1.TeiVectorsService``.

    Args:
        requests: answers them.
    """

    def __init__(self, requests: TeiRequests) -> None:
        self._requests = requests

    async def EmbedAll(self, request: tei_pb2.TeiVectorsServiceEmbedAllRequest, call: Call) -> HttpReply:
        """Embed every token of every text."""
        return await self._requests.embed_all(parse(request.body.data), call)

    async def EmbedSparse(
        self, request: tei_pb2.TeiVectorsServiceEmbedSparseRequest, call: Call
    ) -> HttpReply:
        """Weigh the vocabulary for every text."""
        return await self._requests.embed_sparse(parse(request.body.data), call)

    async def Similarity(self, request: tei_pb2.TeiVectorsServiceSimilarityRequest, call: Call) -> HttpReply:
        """Compare sentences with one."""
        return await self._requests.similarity(parse(request.body.data), call)

    async def Decode(self, request: tei_pb2.TeiVectorsServiceDecodeRequest, call: Call) -> HttpReply:
        """Turn token ids into text."""
        return await self._requests.decode(parse(request.body.data), call)

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``."""
        return error_reply(error, call)
