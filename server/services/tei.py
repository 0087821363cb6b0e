"""Text Embeddings Inference over REST, and what other systems offer under the same paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs import predict as predict_codec
from headrace.server.codecs import tei
from headrace.server.codecs.http_headers import compute_headers, retry_headers
from headrace.server.codecs.json_body import convert, decode, parse
from headrace.server.codecs.text_inputs import check_count, direction, pairs, texts
from headrace.server.codecs.vectors import json_vectors
from headrace.server.errors import InputEmptyError, TaskNotSupportedError
from headrace.server.repository.model import Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.server.tasks.embed import embed
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.predict import predict
from headrace.server.tasks.rerank import RerankOptions, rerank
from headrace.server.tasks.tensors import InferRequest

if TYPE_CHECKING:
    from headrace.rest.v1 import tei_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.tokenization import Tokenizing

RANKING: Final = (Task.RERANK, Task.EMBED, Task.CLASSIFY)
LABELLING: Final = (Task.CLASSIFY, Task.RERANK)
TENSORS: Final = (Task.PREDICT, Task.TENSORS)


class TeiService:
    """Facade of ``headrace.rest.v1.TeiService``.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and encoding.
        max_client_batch_size: most texts of one request.
        max_documents: most documents of one request in the shape of Cohere, Jina and vLLM.
    """

    def __init__(
        self,
        repository: Repository,
        tokenizing: Tokenizing,
        max_client_batch_size: int = 32,
        max_documents: int = 1000,
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._max_batch = max_client_batch_size
        self._max_documents = max_documents

    async def Embed(self, request: tei_pb2.TeiServiceEmbedRequest, call: Call) -> HttpReply:
        """Embed one or many texts or lists of token ids; always answers a list of vectors."""
        body = decode(request.body.data, tei.EmbedBody)
        inputs = texts(body.inputs, field="inputs", limit=self._max_batch)
        model = self._resolve(call, body.model, Task.EMBED)
        result = await embed(self._tokenizing, model, inputs, tei.embed_options(body))
        vectors = result.vectors
        answer = await call_by_size(self._tokenizing, vectors.nbytes, json_vectors, vectors)
        return HttpReply(answer, headers=compute_headers(inputs, result.token_counts, result.timings))

    async def Rerank(self, request: tei_pb2.TeiServiceRerankRequest, call: Call) -> HttpReply:
        """Order ``texts`` (answers a list) or ``documents`` (answers an object) by relevance to the query."""
        value = parse(request.body.data)
        if isinstance(value, dict) and "documents" in value and "texts" not in value:
            return await self._rank_documents(convert(value, tei.DocumentsBody), call)
        body = convert(value, tei.RerankBody)
        check_count(len(body.texts), self._max_batch)
        options = RerankOptions(
            raw_scores=bool(body.raw_scores),
            truncate=body.truncate,
            direction=direction(body.truncation_direction),
        )
        model = self._resolve(call, body.model, *RANKING)
        result = await rerank(self._tokenizing, model, body.query, body.texts, options)
        answer = tei.ranks_json(result, body.texts if body.return_text else None)
        headers = compute_headers([body.query, *body.texts], result.token_counts, result.timings)
        return HttpReply(answer, headers=headers)

    async def _rank_documents(self, body: tei.DocumentsBody, call: Call) -> HttpReply:
        given = [body.documents] if isinstance(body.documents, str) else body.documents
        documents = [entry if isinstance(entry, str) else entry.text for entry in given]
        if not documents:
            raise InputEmptyError("`documents` cannot be empty", field="documents")
        check_count(len(documents), self._max_documents)
        model = self._resolve(call, body.model, *RANKING)
        options = RerankOptions(top_n=body.top_n or None)  # 0 is all
        result = await rerank(self._tokenizing, model, body.query, documents, options)
        answer = tei.results_json(result, documents, model.name, with_text=body.return_documents is not False)
        headers = compute_headers([body.query, *documents], result.token_counts, result.timings)
        return HttpReply(answer, headers=headers)

    async def Predict(self, request: tei_pb2.TeiServicePredictRequest, call: Call) -> HttpReply:
        """Label texts, or run a classical model on arrays: the kind of the model decides.

        Where neither the URL nor the body names a model, text goes to the default classifier and everything
        else to the default classical model.
        """
        value = parse(request.body.data)
        text = _is_text(value)
        name = value.get("model") if isinstance(value, dict) else None
        tasks = (*LABELLING, *TENSORS) if text else (*TENSORS, *LABELLING)
        model = self._resolve(call, name if isinstance(name, str) else None, *tasks)
        if model.task in LABELLING and model.text is not None:
            if not isinstance(value, dict) or not (text or "inputs" in value):
                raise TaskNotSupportedError(
                    f'model \'{model.name}\' classifies text, send {{"inputs": "…"}}',
                    model=model.name,
                    task=model.task.value,
                )
            return await self._label(convert(value, tei.PredictBody), model)
        return await self._run(value, len(request.body.data), model)

    async def _label(self, body: tei.PredictBody, model: Model) -> HttpReply:
        inputs, batch = pairs(body.inputs, field="inputs", limit=self._max_batch)
        options = ClassifyOptions(
            raw_scores=bool(body.raw_scores),
            truncate=body.truncate,
            direction=direction(body.truncation_direction),
        )
        result = await classify(self._tokenizing, model, inputs, options)
        headers = compute_headers(inputs, result.token_counts, result.timings)
        return HttpReply(tei.labels_json(result, batch=batch), headers=headers)

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

    def _resolve(self, call: Call, name: str | None, *tasks: Task) -> Model:
        model = call.model = self._repository.resolve(call.model_id or name or "", *tasks)
        return model

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``."""
        status, body = tei.error_json(error, oicm=call.surface == "oicm")
        return HttpReply(body, status=status, headers=retry_headers(status))


def _is_text(value: Any) -> bool:
    """Whether a body's ``inputs`` is a text, or lists that begin with one."""
    inputs = value.get("inputs") if isinstance(value, dict) else None
    while isinstance(inputs, list) and inputs:
        inputs = inputs[0]
    return isinstance(inputs, str)
