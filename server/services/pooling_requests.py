"""What the bodies of vLLM's pooling routes ask for, once they are parsed: shared by its services."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs import cohere_embed
from headrace.server.codecs import vllm_pooling_answers as answers
from headrace.server.codecs.http_headers import compute_headers, retry_headers
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_identity import Identity, identity
from headrace.server.codecs.openai_requests import default_model, request_id
from headrace.server.codecs.tei import check_normalize
from headrace.server.codecs.text_inputs import check_count
from headrace.server.codecs.vector_formats import VectorFormat, vector_format
from headrace.server.codecs.vectors import json_embeddings, json_vectors
from headrace.server.codecs.vllm_pooling import PoolingBody, pooling_task, read_inputs, reading
from headrace.server.codecs.vllm_scores import ScoringBody, read_documents, read_pairs, results_json
from headrace.server.repository.model import Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.tasks.chat import chat_texts
from headrace.server.tasks.classify import Classifications, ClassifyOptions, classify
from headrace.server.tasks.embed import EmbedOptions, checked_dimensions, embed
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.rerank import RerankOptions, rerank
from headrace.server.tasks.score import ScoreOptions, score
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.token_vectors import embed_tokens, unit_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from headrace.server.codecs.http_headers import Headers
    from headrace.server.codecs.vllm_pooling import Read, Reading
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model, TextSettings
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.chat_templates import ChatTemplates
    from headrace.server.tasks.embed import Embeddings
    from headrace.server.tasks.rerank import Ranking
    from headrace.server.tasks.score import Scores
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.token_vectors import TokenVectors
    from headrace.server.tasks.tokenization import Tokenizing

    _Result = Embeddings | TokenVectors | Classifications | Scores | Ranking

VLLM: Final = "vllm"
"""What ``Call.form`` is for a body of these routes on a path that has others too."""
SCORING: Final = (Task.RERANK, Task.EMBED, Task.CLASSIFY)
LABELLING: Final = (Task.CLASSIFY, Task.RERANK)
BINARY: Final = "application/octet-stream"


class PoolingRequests:
    """Answers parsed bodies of embeddings, classification, scores, ranking and pooling as vLLM does.

    Every method takes the JSON object of the body, sets ``call.model`` and raises
    :class:`~headrace.server.errors.InvalidJsonError` for a wrong shape,
    :class:`~headrace.server.errors.InvalidArgumentError` for an option that is out of range, what
    :meth:`Repository.resolve` raises, and what the task raises.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and encoding.
        templates: compiled chat templates, for inputs that are conversations.
        max_documents: most documents of one ranking.
        compute_type: the header ``x-compute-type``.
    """

    def __init__(
        self,
        repository: Repository,
        tokenizing: Tokenizing,
        templates: ChatTemplates,
        max_documents: int = 1000,
        compute_type: str = "cpu",
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._templates = templates
        self._max_documents = max_documents
        self._compute_type = compute_type

    async def embeddings(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        """Embed texts, token ids or conversations; inputs that are too long are cut."""
        body = convert(value, PoolingBody, strict=False)
        read = read_inputs(value, body)
        form = vector_format(body.encoding_format, body.embed_dtype, body.endianness)
        model = self._resolve(call, body.model, Task.EMBED)
        check_normalize(body.use_activation, model, field="use_activation")
        how = reading(body, _settings(model).max_tokens, truncate=True)
        inputs = await self._texts(model, read)
        result = await embed(self._tokenizing, model, inputs, _embed_options(body, how, read))
        answer = self._identity("embd-", model, call, body.request_id)
        return await self._vectors(list(result.vectors), inputs, result, form, answer, "embedding")

    async def cohere_embed(
        self, value: Mapping[str, Any], call: Call, version: cohere_embed.Version = "2"
    ) -> HttpReply:
        """Embed texts in Cohere's form; inputs that are too long are cut unless the body forbids it."""
        body = cohere_embed.read_body(value)
        call.inputs = "texts" if body.texts is not None else "inputs"
        texts = cohere_embed.read_texts(body)
        how = body.reading
        model = self._resolve(call, body.model, Task.EMBED)
        options = EmbedOptions(
            dimensions=checked_dimensions(model, body.output_dimension, field="output_dimension"),
            truncate=how.truncate,
            direction=how.direction,
            limit=how.limit,
            prompt_name=cohere_embed.prompt_name(body.input_type, _settings(model).prompts),
        )
        result = await embed(self._tokenizing, model, texts, options)
        encode: Callable[[NDArray[np.float32]], bytes] = json_vectors
        if not cohere_embed.plain_floats(body, version):
            encode = partial(cohere_embed.embeddings_json, types=body.types)
        encoded = await call_by_size(self._tokenizing, result.vectors.nbytes, encode, result.vectors)
        answer = self._identity("embd-", model, call)
        return HttpReply(
            cohere_embed.answer_json(answer, encoded, body, result.token_counts, version),
            headers=self._headers(texts, result),
        )

    async def classify(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        """Give the probability of every class for texts, token ids or conversations."""
        body = convert(value, PoolingBody, strict=False)
        read = read_inputs(value, body)
        model = self._resolve(call, body.model, *LABELLING)
        inputs, result = await self._labels(body, read, model)
        answer = answers.classes_json(result, self._identity("classify-", model, call, body.request_id))
        return HttpReply(answer, headers=self._headers(inputs, result))

    async def score(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        """Score pairs of texts."""
        body = convert(value, PoolingBody, strict=False)
        scoring = convert(value, ScoringBody, strict=False)
        firsts, seconds, call.inputs = read_pairs(value)
        check_count(max(len(firsts), len(seconds)))
        model = self._resolve(call, body.model, *SCORING)
        how = reading(body, _settings(model).max_tokens, truncate=scoring.cuts)
        options = ScoreOptions(
            raw_scores=_gives_logits(body, model),
            truncate=how.truncate,
            direction=how.direction,
            limit=how.limit,
            first_limit=scoring.query_limit,
            second_limit=scoring.text_limit,
        )
        result = await score(self._tokenizing, model, firsts, seconds, options)
        answer = self._identity("score-", model, call, body.request_id)
        headers = self._headers([*firsts, *seconds], result)
        return HttpReply(answers.scores_json(result.values, result.token_counts, answer), headers=headers)

    async def rank(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        """Order ``documents`` by their relevance to ``query``."""
        body = convert(value, PoolingBody, strict=False)
        scoring = convert(value, ScoringBody, strict=False)
        documents = read_documents(value, scoring)
        call.inputs = "documents"
        check_count(len(documents.texts), self._max_documents)
        model = self._resolve(call, body.model, *SCORING)
        how = reading(body, _settings(model).max_tokens, truncate=scoring.cuts)
        options = RerankOptions(
            raw_scores=_gives_logits(body, model),
            top_n=scoring.best,
            truncate=how.truncate,
            direction=how.direction,
            limit=how.limit,
            query_limit=scoring.query_limit,
            text_limit=scoring.text_limit,
        )
        result = await rerank(self._tokenizing, model, documents.query, documents.texts, options)
        answer = self._identity("rerank-", model, call, body.request_id)
        headers = self._headers(result.inputs, result)
        with_documents = scoring.return_documents is not False
        return HttpReply(results_json(result, documents, answer, echo=with_documents), headers=headers)

    async def pooling(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        """Give what the model's pooler makes of each input: token vectors, one vector, or probabilities."""
        body = convert(value, PoolingBody, strict=False)
        read = read_inputs(value, body)
        form = vector_format(body.encoding_format, body.embed_dtype, body.endianness)
        model = self._resolve(call, body.model, Task.EMBED, *LABELLING)
        task = pooling_task(body.task, model.task, tokens=model.token_vectors)
        rows: Sequence[NDArray[np.float32]]
        result: _Result
        if task == "classify":
            inputs, labels = await self._labels(body, read, model)
            result, rows = labels, list(labels.by_class())
        else:
            how = reading(body, _settings(model).max_tokens)
            options = _embed_options(body, how, read)
            inputs = await self._texts(model, read)
            if task == "embed":
                result = whole = await embed(self._tokenizing, model, inputs, options)
                rows = list(whole.vectors)
            else:
                dimensions = checked_dimensions(model, body.dimensions)
                result = tokens = await embed_tokens(self._tokenizing, model, inputs, options)
                rows = await call_by_size(
                    self._tokenizing, sum(row.nbytes for row in tokens.vectors),
                    unit_tokens, tokens.vectors, dimensions, normalize=body.use_activation is not False,
                )  # fmt: skip
        answer = self._identity("pool-", model, call, body.request_id)
        return await self._vectors(rows, inputs, result, form, answer, "pooling")

    async def _labels(
        self, body: PoolingBody, read: Read, model: Model
    ) -> tuple[Sequence[Text], Classifications]:
        how = reading(body, _settings(model).max_tokens)
        options = ClassifyOptions(
            raw_scores=_gives_logits(body, model),
            truncate=how.truncate,
            direction=how.direction,
            limit=how.limit,
            special=read.special,
        )
        inputs = await self._texts(model, read)
        return inputs, await classify(self._tokenizing, model, inputs, options)

    async def _texts(self, model: Model, read: Read) -> Sequence[Text]:
        return read.texts or await chat_texts(self._tokenizing, self._templates, model, read.chats)

    async def _vectors(
        self,
        rows: Sequence[NDArray[np.float32]],
        inputs: Sequence[Text],
        result: _Result,
        form: VectorFormat,
        answer: Identity,
        kind: str,
    ) -> HttpReply:
        size, counts = sum(row.nbytes for row in rows), result.token_counts
        headers = self._headers(inputs, result)
        if form.binary:
            packed, places = await call_by_size(
                self._tokenizing, size, answers.vectors_bytes, rows, form, answer, counts
            )
            return HttpReply(packed, BINARY, headers=(*places, *headers))
        field = "data" if kind == "pooling" else kind
        data = await call_by_size(self._tokenizing, size, json_embeddings, rows, form, kind=kind, field=field)
        return HttpReply(answers.list_json(answer, data, counts), headers=headers)

    def _headers(self, inputs: Sequence[Text], result: _Result) -> Headers:
        return compute_headers(inputs, result.token_counts, result.timings, self._compute_type)

    def _resolve(self, call: Call, name: str | None, *tasks: Task) -> Model:
        model = call.model = self._repository.resolve(call.model_id or default_model(name), *tasks)
        return model

    def _identity(self, prefix: str, model: Model, call: Call, given: str | None = None) -> Identity:
        return identity(prefix, model.name, "", request_id(given, call.headers))


def _settings(model: Model) -> TextSettings:
    return text_settings(model, fits=True, purpose="a text encoder")


def _gives_logits(body: PoolingBody, model: Model) -> bool:
    """Whether scores are logits: the body says so, or the model's own configuration, as vLLM reads it."""
    return body.use_activation is False or (body.use_activation is None and _settings(model).logits)


def _embed_options(body: PoolingBody, how: Reading, read: Read) -> EmbedOptions:
    return EmbedOptions(
        normalize=body.use_activation,
        dimensions=body.dimensions,
        truncate=how.truncate,
        direction=how.direction,
        limit=how.limit,
        special=read.special,
    )


def error_reply(error: HeadraceError, call: Call | None = None) -> HttpReply:
    """Answer with vLLM's error object; ``call`` knows what the body calls its inputs."""
    status, body = answers.error_json(error, (call.inputs if call is not None else "") or "input")
    return HttpReply(body, status=status, headers=retry_headers(status))
