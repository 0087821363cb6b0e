"""What the requests of Text Embeddings Inference ask for, once they are parsed: shared by its services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs import predict as predict_codec
from headrace.server.codecs import tei
from headrace.server.codecs.http_headers import compute_headers, retry_headers
from headrace.server.codecs.json_body import convert, encode
from headrace.server.codecs.tei_info import TEXT_TASKS
from headrace.server.codecs.text_inputs import check_count, direction, pairs, texts
from headrace.server.codecs.vectors import json_token_vectors, json_vectors
from headrace.server.errors import InvalidJsonError, TaskNotSupportedError
from headrace.server.repository.model import Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.services.tei_models import (
    LABELLING,
    NO_CLASSIFIER,
    NO_EMBEDDER,
    resolve_encoder,
    resolve_ranker,
    resolve_sparse,
)
from headrace.server.tasks import text_tokens
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.server.tasks.embed import embed
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.predict import predict
from headrace.server.tasks.rerank import RerankOptions, rerank
from headrace.server.tasks.similarity import similarities
from headrace.server.tasks.sparse import embed_sparse
from headrace.server.tasks.tensors import InferRequest
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.token_vectors import embed_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.codecs.http_headers import Headers
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.text_models import Timings
    from headrace.server.tasks.tokenization import Tokenizing

TENSORS: Final = (Task.PREDICT, Task.TENSORS)


class TeiRequests:
    """Answers parsed bodies of Text Embeddings Inference.

    Every method takes the JSON value of the body, of any shape, sets ``call.model`` and raises
    :class:`~headrace.server.errors.InvalidJsonError` for a value of a wrong shape, what
    :meth:`Repository.resolve` raises, and what the task raises.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and encoding.
        max_client_batch_size: most texts of one request.
        compute_type: the header ``x-compute-type``.
    """

    def __init__(
        self,
        repository: Repository,
        tokenizing: Tokenizing,
        max_client_batch_size: int = 32,
        compute_type: str = "cpu",
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._max_batch = max_client_batch_size
        self._compute_type = compute_type

    async def embed(self, value: Any, call: Call) -> HttpReply:
        """Embed one or many texts or lists of token ids; always answers a list of vectors."""
        body = convert(value, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        model = self._embedder(call, body.model)
        tei.check_normalize(body.normalize, model)
        result = await embed(self._tokenizing, model, inputs, tei.embed_options(body))
        vectors = result.vectors
        answer = await call_by_size(self._tokenizing, vectors.nbytes, json_vectors, vectors)
        return HttpReply(answer, headers=self._headers(inputs, result.token_counts, result.timings))

    async def embed_all(self, value: Any, call: Call) -> HttpReply:
        """Embed every token of every text."""
        body = convert(value, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        model = self._embedder(call, body.model)
        tei.check_pooled_late(model)
        result = await embed_tokens(self._tokenizing, model, inputs, tei.embed_options(body))
        size = sum(vectors.nbytes for vectors in result.vectors)
        answer = await call_by_size(self._tokenizing, size, json_token_vectors, result.vectors)
        return HttpReply(answer, headers=self._headers(inputs, result.token_counts, result.timings))

    async def embed_sparse(self, value: Any, call: Call) -> HttpReply:
        """Weigh the vocabulary for every text."""
        body = convert(value, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        model = resolve_sparse(self._repository, call, call.model_id or body.model or "")
        result = await embed_sparse(self._tokenizing, model, inputs, tei.embed_options(body))
        answer = await self._tokenizing.run(tei.sparse_json, result.rows)
        return HttpReply(answer, headers=self._headers(inputs, result.token_counts, result.timings))

    async def similarity(self, value: Any, call: Call) -> HttpReply:
        """Compare sentences with one."""
        body = convert(value, tei.SimilarityBody)
        source, sentences = body.inputs.source_sentence, body.inputs.sentences
        check_count(len(sentences), self._max_batch)
        options = tei.embed_options(body.parameters or tei.SimilarityParameters())
        model = self._embedder(call, body.model)
        values, counts, times = await similarities(self._tokenizing, model, source, sentences, options)
        return HttpReply(encode(values), headers=self._headers([source, *sentences], counts, times))

    async def decode(self, value: Any, call: Call) -> HttpReply:
        """Turn token ids into text."""
        body = convert(value, tei.DecodeBody)
        rows = tei.decode_rows(body)
        check_count(len(rows), self._max_batch)
        model = self.resolve(call, body.model, TEXT_TASKS)
        found = await text_tokens.decode(
            self._tokenizing,
            text_settings(model, fits=True, purpose="a text model"),
            rows,
            skip_special_tokens=body.skip_special_tokens is not False,
        )
        return HttpReply(encode(found))

    async def rerank(self, value: Any, call: Call) -> HttpReply:
        """Order ``texts`` by relevance to the query; answers a list."""
        body = convert(value, tei.RerankBody)
        check_count(len(body.texts), self._max_batch)
        options = RerankOptions(
            raw_scores=bool(body.raw_scores),
            truncate=body.truncate,
            direction=direction(body.truncation_direction),
        )
        model = resolve_ranker(self._repository, call, call.model_id or body.model or "")
        result = await rerank(self._tokenizing, model, body.query, body.texts, options)
        answer = tei.ranks_json(result, body.texts if body.return_text else None)
        headers = self._headers(result.inputs, result.token_counts, result.timings)
        return HttpReply(answer, headers=headers)

    async def predict(self, value: Any, call: Call, size: int = 0, *, nested: bool = False) -> HttpReply:
        """Label texts, or run a classical model on arrays: the kind of the model decides.

        Where neither the URL nor the body names a model, text goes to the default classifier and everything
        else to the default classical model.

        Args:
            value: the parsed body.
            call: the request.
            size: of the body in bytes.
            nested: answer a list of lists for one text as well.
        """
        text = _is_text(value)
        name = value.get("model") if isinstance(value, dict) else None
        tasks = (*LABELLING, *TENSORS) if text else (*TENSORS, *LABELLING)
        model = self.resolve(call, name if isinstance(name, str) else None, tasks, NO_CLASSIFIER)
        if model.task in LABELLING and model.text is not None:
            if not isinstance(value, dict) or not (text or "inputs" in value):
                hint = f'model \'{model.name}\' classifies text, send {{"inputs": "…"}}'
                if call.surface == "oicm":  # whose clients send arrays to the other kind
                    raise TaskNotSupportedError(hint, model=model.name, task=model.task.value)
                raise InvalidJsonError(hint, field="inputs")
            return await self._label(convert(value, tei.PredictBody), model, nested=nested)
        return await self._run(value, size, model)

    async def _label(self, body: tei.PredictBody, model: Model, *, nested: bool) -> HttpReply:
        inputs, batch = pairs(body.inputs, field="inputs", limit=self._max_batch)
        function = body.function_to_apply
        options = ClassifyOptions(
            raw_scores=bool(body.raw_scores) or function is not None,
            top_k=None if function == "softmax" else body.top_k,  # which needs all of them
            truncate=body.truncate,
            direction=direction(body.truncation_direction),
        )
        result = await classify(self._tokenizing, model, inputs, options)
        headers = self._headers(inputs, result.token_counts, result.timings)
        if function is not None:
            result = tei.applied(result, function, body.top_k)
        return HttpReply(tei.labels_json(result, batch=batch or nested), headers=headers)

    async def _run(self, value: Any, size: int, model: Model) -> HttpReply:
        inputs = await call_by_size(
            self._tokenizing, size, predict_codec.decode_inputs, value, model.inputs, batching=model.batching
        )
        request = InferRequest(model.name, str(model.version), inputs=inputs)
        response = await predict(self._tokenizing, model, request)
        answer = await call_by_size(
            self._tokenizing,
            sum(len(output.data) for output in response.outputs),
            predict_codec.encode_outputs,
            response.outputs,
            input_specs=model.inputs,
            output_specs=model.outputs,
            batching=model.batching,
        )
        return HttpReply(answer)

    def _headers(self, inputs: Sequence[Text], token_counts: Sequence[int], times: Timings) -> Headers:
        return compute_headers(inputs, token_counts, times, self._compute_type)

    def _embedder(self, call: Call, name: str | None) -> Model:
        return self.resolve(call, name, (Task.EMBED,), NO_EMBEDDER)

    def resolve(self, call: Call, name: str | None, tasks: Sequence[Task], otherwise: str = "") -> Model:
        """Return the model that the URL or the body names, else a default one; see ``resolve_encoder``."""
        return resolve_encoder(self._repository, call, call.model_id or name or "", tasks, otherwise)


def error_reply(error: HeadraceError, call: Call) -> HttpReply:
    """Answer ``{"error", "error_type"}``."""
    status, body = tei.error_json(error, oicm=call.surface == "oicm")
    return HttpReply(body, status=status, headers=retry_headers(status))


def _is_text(value: Any) -> bool:
    """Whether a body's ``inputs`` is a text, or lists that begin with one."""
    inputs = value.get("inputs") if isinstance(value, dict) else None
    while isinstance(inputs, list) and inputs:
        inputs = inputs[0]
    return isinstance(inputs, str)
