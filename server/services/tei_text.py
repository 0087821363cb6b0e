"""``tei.v1``: Predict, Rerank, Tokenize and Info of Text Embeddings Inference over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from headrace.server.codecs import tei_messages as codec
from headrace.server.codecs.tei_info import TEXT_TASKS, EncoderInfo
from headrace.server.codecs.text_inputs import check_count
from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.services.ordered import answer_in_order
from headrace.server.services.tei_models import LABELLING, NO_CLASSIFIER, resolve_encoder, resolve_ranker
from headrace.server.tasks.batching import Queueing
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.server.tasks.rerank import RerankOptions, merged, rerank
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.text_tokens import decode, tokenize
from headrace.tei.v1 import tei_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, TextSettings
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.text_encoding import Direction, Text
    from headrace.server.tasks.tokenization import Tokenizing

    _Ranking = tei_pb2.RerankRequest | tei_pb2.RerankStreamRequest


class TeiPredictService:
    """Labels texts."""

    grpc_status = staticmethod(codec.status)

    def __init__(self, repository: Repository, tokenizing: Tokenizing, compute_type: str) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._compute_type = compute_type

    async def Predict(self, request: tei_pb2.PredictRequest, call: Call) -> tei_pb2.PredictResponse:
        """Label one text."""
        response = await self._label(request.inputs, request, call)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response

    async def PredictPair(self, request: tei_pb2.PredictPairRequest, call: Call) -> tei_pb2.PredictResponse:
        """Label two texts that belong together."""
        response = await self._label(_pair(request), request, call)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response

    def PredictStream(
        self, requests: AsyncIterator[tei_pb2.PredictRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.PredictResponse]:
        """Label every text of a stream."""
        return answer_in_order(
            requests, lambda request: self._label(request.inputs, request, call, wait=True)
        )

    def PredictPairStream(
        self, requests: AsyncIterator[tei_pb2.PredictPairRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.PredictResponse]:
        """Label every pair of a stream."""
        return answer_in_order(
            requests, lambda request: self._label(_pair(request), request, call, wait=True)
        )

    async def _label(
        self,
        text: Text,
        request: tei_pb2.PredictRequest | tei_pb2.PredictPairRequest,
        call: Call,
        *,
        wait: bool = False,
    ) -> tei_pb2.PredictResponse:
        model = resolve_encoder(self._repository, call, call.model_id, LABELLING, NO_CLASSIFIER)
        options = ClassifyOptions(
            raw_scores=request.raw_scores,
            truncate=request.truncate,
            direction=codec.direction(request.truncation_direction),
            queueing=Queueing(wait=wait),
        )
        return codec.predictions([text], await classify(self._tokenizing, model, [text], options))


class TeiRerankService:
    """Orders texts by their relevance to a query.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and arithmetic.
        max_client_batch_size: most texts of one request.
        compute_type: the header ``x-compute-type``.
    """

    grpc_status = staticmethod(codec.status)

    def __init__(
        self, repository: Repository, tokenizing: Tokenizing, max_client_batch_size: int, compute_type: str
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._max_batch = max_client_batch_size
        self._compute_type = compute_type

    async def Rerank(self, request: tei_pb2.RerankRequest, call: Call) -> tei_pb2.RerankResponse:
        """Rank a list of texts."""
        texts = list(request.texts)
        check_count(len(texts), self._max_batch)
        return await self._rank(texts, {_question(request): range(len(texts))}, request, call)

    async def RerankStream(
        self, requests: AsyncIterator[tei_pb2.RerankStreamRequest], call: Call
    ) -> tei_pb2.RerankResponse:
        """Rank the texts of a stream; ``raw_scores`` and ``return_text`` are taken from its first message."""
        first: tei_pb2.RerankStreamRequest | None = None
        texts: list[str] = []
        questions: dict[_Question, list[int]] = {}
        async for request in requests:
            first = first or request
            questions.setdefault(_question(request), []).append(len(texts))
            texts.append(request.text)
            check_count(len(texts), self._max_batch)
        if first is None:
            raise InputEmptyError("`texts` cannot be empty", field="texts")
        return await self._rank(texts, questions, first, call)

    async def _rank(
        self, texts: list[str], questions: Mapping[_Question, Sequence[int]], first: _Ranking, call: Call
    ) -> tei_pb2.RerankResponse:
        """Rank ``texts``; ``questions`` has the positions of the texts that each is asked of."""
        model = resolve_ranker(self._repository, call, call.model_id)
        groups = []
        for question, places in questions.items():
            options = RerankOptions(
                raw_scores=first.raw_scores,
                truncate=question.truncate,
                direction=question.direction,
                queueing=Queueing(wait=True),
            )
            own = [texts[place] for place in places]
            groups.append((places, await rerank(self._tokenizing, model, question.query, own, options)))
        response = codec.ranks(texts, merged(groups), return_text=first.return_text)
        await call.context.send_initial_metadata(codec.headers(response.metadata, self._compute_type))
        return response


class TeiTokenizeService:
    """The tokenizer of the default text model."""

    grpc_status = staticmethod(codec.status)

    def __init__(self, repository: Repository, tokenizing: Tokenizing) -> None:
        self._repository = repository
        self._tokenizing = tokenizing

    async def Tokenize(self, request: tei_pb2.EncodeRequest, call: Call) -> tei_pb2.EncodeResponse:
        """Return the tokens of a text."""
        found = await tokenize(
            self._tokenizing,
            self._settings(call),
            [request.inputs],
            add_special_tokens=request.add_special_tokens,
            prompt_name=request.prompt_name,
        )
        return codec.tokens(found[0])

    def TokenizeStream(
        self, requests: AsyncIterator[tei_pb2.EncodeRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.EncodeResponse]:
        """Return the tokens of every text of a stream."""
        return answer_in_order(requests, lambda request: self.Tokenize(request, call))

    async def Decode(self, request: tei_pb2.DecodeRequest, call: Call) -> tei_pb2.DecodeResponse:
        """Return the text of tokens."""
        found = await decode(
            self._tokenizing,
            self._settings(call),
            [request.ids],
            skip_special_tokens=request.skip_special_tokens,
        )
        return tei_pb2.DecodeResponse(text=found[0])

    def DecodeStream(
        self, requests: AsyncIterator[tei_pb2.DecodeRequest], call: Call
    ) -> AsyncGenerator[tei_pb2.DecodeResponse]:
        """Return the text of every list of tokens of a stream."""
        return answer_in_order(requests, lambda request: self.Decode(request, call))

    def _settings(self, call: Call) -> TextSettings:
        model = call.model = self._repository.resolve(call.model_id, *TEXT_TASKS)
        return text_settings(model, fits=True, purpose="a text model")


class TeiInfoService:
    """Describes the server and its default text model.

    Args:
        repository: the models.
        info: what a text model is described by.
    """

    grpc_status = staticmethod(codec.status)

    def __init__(self, repository: Repository, info: EncoderInfo) -> None:
        self._repository = repository
        self._info = info

    async def Info(self, request: tei_pb2.InfoRequest, call: Call) -> tei_pb2.InfoResponse:
        """Describe the model that the metadata names, else the default one."""
        model: Model = self._repository.resolve(call.model_id, *TEXT_TASKS)
        call.model = model
        return codec.info(self._info.describe(model))


class _Question(NamedTuple):
    """What texts are ranked by."""

    query: str
    truncate: bool
    direction: Direction


def _question(request: _Ranking) -> _Question:
    return _Question(request.query, request.truncate, codec.direction(request.truncation_direction))


def _pair(request: tei_pb2.PredictPairRequest) -> tuple[str, str]:
    if len(request.inputs) != 2:
        raise InvalidArgumentError(
            f"`inputs` must have a single text pair (2 elements), not {len(request.inputs)}", field="inputs"
        )
    return request.inputs[0], request.inputs[1]
