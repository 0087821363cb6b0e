"""``tei.v1.Embed``: Text Embeddings Inference over gRPC, in the same batches as every other family."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from headrace.server.codecs import tei_messages as codec
from headrace.server.codecs.tei import check_normalize, check_pooled_late
from headrace.server.codecs.vectors import packed_floats, packed_vectors
from headrace.server.repository.model import Task
from headrace.server.services.ordered import answer_in_order
from headrace.server.services.tei_models import NO_EMBEDDER, resolve_encoder, resolve_sparse
from headrace.server.tasks.batching import Queueing
from headrace.server.tasks.embed import EmbedOptions, embed
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.sparse import embed_sparse
from headrace.server.tasks.token_vectors import embed_tokens
from headrace.tei.v1 import tei_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.tokenization import Tokenizing


class TeiEmbedService:
    """Turns texts into vectors.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and arithmetic.
        compute_type: the header ``x-compute-type``.
    """

    grpc_status = staticmethod(codec.status)

    def __init__(self, repository: Repository, tokenizing: Tokenizing, compute_type: str) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._compute_type = compute_type

    async def Embed(self, request: tei_pb2.EmbedRequest, call: Call) -> tei_pb2.EmbedResponse:
        """Embed one text."""
        response = await self._embed(request, call)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response

    def EmbedStream(
        self, requests: AsyncIterator[tei_pb2.EmbedRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.EmbedResponse]:
        """Embed every text of a stream."""
        return answer_in_order(requests, lambda request: self._embed(request, call, wait=True))

    async def EmbedSparse(
        self, request: tei_pb2.EmbedSparseRequest, call: Call
    ) -> tei_pb2.EmbedSparseResponse:
        """Weigh the vocabulary for one text."""
        response = await self._embed_sparse(request, call)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response

    def EmbedSparseStream(
        self, requests: AsyncIterator[tei_pb2.EmbedSparseRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.EmbedSparseResponse]:
        """Weigh the vocabulary for every text of a stream."""
        return answer_in_order(requests, lambda request: self._embed_sparse(request, call, wait=True))

    async def EmbedAll(self, request: tei_pb2.EmbedAllRequest, call: Call) -> tei_pb2.EmbedAllResponse:
        """Embed the tokens of one text."""
        response = await self._embed_all(request, call)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response

    def EmbedAllStream(
        self, requests: AsyncIterator[tei_pb2.EmbedAllRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.EmbedAllResponse]:
        """Embed the tokens of every text of a stream."""
        return answer_in_order(requests, lambda request: self._embed_all(request, call, wait=True))

    async def _embed(
        self, request: tei_pb2.EmbedRequest, call: Call, *, wait: bool = False
    ) -> tei_pb2.EmbedResponse:
        texts = [request.inputs]
        options = EmbedOptions(
            normalize=request.normalize if request.HasField("normalize") else None,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            truncate=request.truncate,
            direction=codec.direction(request.truncation_direction),
            prompt_name=request.prompt_name,
            queueing=Queueing(wait=wait),
        )
        model = self._model(call)
        check_normalize(options.normalize, model)
        result = await embed(self._tokenizing, model, texts, options)
        response: tei_pb2.EmbedResponse = tei_pb2.EmbedResponse.FromString(packed_floats(result.vectors[0]))
        response.metadata.CopyFrom(codec.metadata(texts, result.token_counts, result.timings))
        return response

    async def _embed_sparse(
        self, request: tei_pb2.EmbedSparseRequest, call: Call, *, wait: bool = False
    ) -> tei_pb2.EmbedSparseResponse:
        texts = [request.inputs]
        model = resolve_sparse(self._repository, call, call.model_id)
        result = await embed_sparse(self._tokenizing, model, texts, _options(request, wait=wait))
        weights = result.rows[0]
        return tei_pb2.EmbedSparseResponse(
            sparse_embeddings=[
                tei_pb2.SparseValue(index=index, value=value)
                for index, value in zip(weights.indices.tolist(), weights.values.tolist(), strict=True)
            ],
            metadata=codec.metadata(texts, result.token_counts, result.timings),
        )

    async def _embed_all(
        self, request: tei_pb2.EmbedAllRequest, call: Call, *, wait: bool = False
    ) -> tei_pb2.EmbedAllResponse:
        texts = [request.inputs]
        model = self._model(call)
        check_pooled_late(model)
        result = await embed_tokens(self._tokenizing, model, texts, _options(request, wait=wait))
        vectors = result.vectors[0]
        packed = await call_by_size(self._tokenizing, vectors.nbytes, packed_vectors, vectors)
        response: tei_pb2.EmbedAllResponse = tei_pb2.EmbedAllResponse.FromString(packed)
        response.metadata.CopyFrom(codec.metadata(texts, result.token_counts, result.timings))
        return response

    def _model(self, call: Call) -> Model:
        return resolve_encoder(self._repository, call, call.model_id, (Task.EMBED,), NO_EMBEDDER)


def _options(request: tei_pb2.EmbedSparseRequest | tei_pb2.EmbedAllRequest, *, wait: bool) -> EmbedOptions:
    return EmbedOptions(
        truncate=request.truncate,
        direction=codec.direction(request.truncation_direction),
        prompt_name=request.prompt_name,
        queueing=Queueing(wait=wait),
    )
