"""Text Embeddings Inference over REST: vectors of tokens, sparse vectors, similarities, decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs import tei
from headrace.server.codecs.http_headers import compute_headers, retry_headers
from headrace.server.codecs.json_body import decode, encode
from headrace.server.codecs.tei_info import TEXT_TASKS
from headrace.server.codecs.text_inputs import check_count, texts
from headrace.server.codecs.vectors import json_token_vectors
from headrace.server.errors import InputEmptyError, InvalidJsonError
from headrace.server.repository.model import Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.tasks import text_tokens
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.similarity import similarities
from headrace.server.tasks.sparse import embed_sparse
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.token_vectors import embed_tokens

if TYPE_CHECKING:
    from headrace.rest.v1 import tei_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.tokenization import Tokenizing


class TeiVectorsService:
    """Facade of ``headrace.rest.v1.TeiVectorsService``.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and encoding.
        max_client_batch_size: most texts of one request.
    """

    def __init__(self, repository: Repository, tokenizing: Tokenizing, max_client_batch_size: int) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._max_batch = max_client_batch_size

    async def EmbedAll(self, request: tei_pb2.TeiVectorsServiceEmbedAllRequest, call: Call) -> HttpReply:
        """Embed every token of every text."""
        body = decode(request.body.data, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        result = await embed_tokens(
            self._tokenizing, self._embedder(call, body.model), inputs, tei.embed_options(body)
        )
        size = sum(vectors.nbytes for vectors in result.vectors)
        answer = await call_by_size(self._tokenizing, size, json_token_vectors, result.vectors)
        return HttpReply(answer, headers=compute_headers(inputs, result.token_counts, result.timings))

    async def EmbedSparse(
        self, request: tei_pb2.TeiVectorsServiceEmbedSparseRequest, call: Call
    ) -> HttpReply:
        """Weigh the vocabulary for every text."""
        body = decode(request.body.data, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        result = await embed_sparse(
            self._tokenizing, self._embedder(call, body.model), inputs, tei.embed_options(body)
        )
        answer = await self._tokenizing.run(tei.sparse_json, result.rows)
        return HttpReply(answer, headers=compute_headers(inputs, result.token_counts, result.timings))

    async def Similarity(self, request: tei_pb2.TeiVectorsServiceSimilarityRequest, call: Call) -> HttpReply:
        """Compare sentences with one."""
        body = decode(request.body.data, tei.SimilarityBody)
        source, sentences = body.inputs.source_sentence, body.inputs.sentences
        check_count(len(sentences), self._max_batch)
        options = tei.embed_options(body.parameters or tei.SimilarityParameters())
        model = self._embedder(call, body.model)
        values, counts, times = await similarities(self._tokenizing, model, source, sentences, options)
        return HttpReply(encode(values), headers=compute_headers([source, *sentences], counts, times))

    async def Decode(self, request: tei_pb2.TeiVectorsServiceDecodeRequest, call: Call) -> HttpReply:
        """Turn token ids into text."""
        body = decode(request.body.data, tei.DecodeBody)
        rows = [entry for entry in body.ids if isinstance(entry, list)]
        flat = [entry for entry in body.ids if isinstance(entry, int)]
        if rows and flat:
            raise InvalidJsonError("`ids`: token ids and lists of them cannot be in one list", field="ids")
        if not (rows or flat):
            raise InputEmptyError("`input_ids` cannot be empty", field="ids", index="0")
        check_count(len(rows), self._max_batch)
        model = self._resolve(call, body.model, *TEXT_TASKS)
        found = await text_tokens.decode(
            self._tokenizing,
            text_settings(model, fits=True, purpose="a text model"),
            rows or [flat],
            skip_special_tokens=body.skip_special_tokens is not False,
        )
        return HttpReply(encode(found))

    def _embedder(self, call: Call, name: str | None) -> Model:
        return self._resolve(call, name, Task.EMBED)

    def _resolve(self, call: Call, name: str | None, *tasks: Task) -> Model:
        model = call.model = self._repository.resolve(call.model_id or name or "", *tasks)
        return model

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``."""
        status, body = tei.error_json(error, oicm=call.surface == "oicm")
        return HttpReply(body, status=status, headers=retry_headers(status))
