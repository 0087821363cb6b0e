"""The paths that mean what the model behind them does: Hugging Face's, SageMaker's and Vertex AI's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs import endpoint
from headrace.server.codecs.endpoint import Invocation, Shape
from headrace.server.codecs.endpoint_refusals import check_served, refusal
from headrace.server.codecs.endpoint_vertex import instance_values, predictions_json, text_of_chat
from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_requests import default_model
from headrace.server.codecs.tei_info import TEXT_TASKS as ENCODING
from headrace.server.codecs.tei_info import EncoderInfo
from headrace.server.errors import HeadraceError, InputEmptyError, TaskNotSupportedError
from headrace.server.repository.lookup import DEFAULT_NAMES
from headrace.server.repository.model import Task
from headrace.server.services import pooling_requests, tei_requests, tgi_requests
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.services.ordered import answer_in_order
from headrace.server.services.pooling_requests import LABELLING, VLLM

if TYPE_CHECKING:
    from headrace.rest.v1 import endpoint_pb2
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.openai_routes import OpenaiRoutes
    from headrace.server.services.pooling_requests import PoolingRequests
    from headrace.server.services.tei_requests import TeiRequests
    from headrace.server.services.tgi_requests import TgiRequests

INSTANCES_AT_ONCE: Final = 32
"""Instances of one ``/vertex`` request that are under way at the same time, at most."""


class EndpointService:
    """Facade of ``headrace.rest.v1.EndpointService``.

    Args:
        repository: the models.
        generating: answers bodies of Text Generation Inference.
        encoding: answers bodies of Text Embeddings Inference.
        openai: answers chat and completion bodies.
        pooling: answers vLLM's bodies for encoders.
        encoder_info: what ``GET /info`` says of an encoder.
        queue_size: texts or requests that may wait at a model. No ``/vertex`` request has more instances
            under way: the queue of an idle server would refuse the others.
    """

    def __init__(
        self,
        repository: Repository,
        generating: TgiRequests,
        encoding: TeiRequests,
        openai: OpenaiRoutes,
        pooling: PoolingRequests,
        encoder_info: EncoderInfo,
        queue_size: int,
    ) -> None:
        self._repository = repository
        self._generating = generating
        self._encoding = encoding
        self._openai = openai
        self._pooling = pooling
        self._encoder_info = encoder_info
        self._at_once = min(INSTANCES_AT_ONCE, queue_size)

    async def Run(
        self, request: endpoint_pb2.EndpointServiceRunRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Do what the model does."""
        return await self._run(endpoint.body_object(request.body.content_type, request.body.data), call)

    async def Invoke(
        self, request: endpoint_pb2.EndpointServiceInvokeRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Chat, complete, encode as vLLM or do what the model does: the members of the body decide."""
        value = endpoint.body_object(request.body.content_type, request.body.data)
        match endpoint.invocation(value):
            case Invocation.CHAT:
                return await self._openai.chat(value, call)
            case Invocation.COMPLETION:
                return await self._openai.completion(value, call)
            case Invocation.RUN:
                return await self._run(value, call)
            case asked:
                call.form = VLLM
                return await self._pool(asked, value, call)

    async def _pool(self, asked: Invocation, value: dict[str, Any], call: Call) -> HttpReply:
        """Answer a body of vLLM's routes for encoders."""
        if asked is Invocation.RANKING:
            return await self._pooling.rank(value, call)
        if asked is Invocation.SCORES:
            return await self._pooling.score(value, call)
        model = self._model(value, Shape.TEXTS, call)
        if model.task in LABELLING:
            return await self._pooling.classify(value, call)
        return await self._pooling.embeddings(value, call)

    async def PredictInstances(
        self, request: endpoint_pb2.EndpointServicePredictInstancesRequest, call: Call
    ) -> HttpReply:
        """Do what the model does with each instance; the first that fails ends the request."""
        value = endpoint.body_object(request.body.content_type, request.body.data)
        instances = instance_values(value)
        if not instances:
            model = self._model(value, Shape.TEXT, call)
            if model.task is Task.GENERATE:
                raise InputEmptyError("Input validation error", field="instances")
            return HttpReply(predictions_json([]))

        async def given() -> AsyncIterator[dict[str, Any]]:
            for instance in instances:
                yield instance

        answers = answer_in_order(given(), lambda one: self._predict(one, call), self._at_once)
        return HttpReply(predictions_json([answer async for answer in answers]))

    async def Info(self, request: endpoint_pb2.EndpointServiceInfoRequest, call: Call) -> HttpReply:
        """Describe a model that takes text; one that generates as TGI does, an encoder as TEI does."""
        name = call.model_id or request.model_id
        tasks = endpoint.TEXT_TASKS if name in DEFAULT_NAMES else ()
        model = call.model = self._repository.resolve(name, *tasks)
        if model.task is Task.GENERATE:
            return self._generating.info(call, model)
        if model.text is None:
            raise TaskNotSupportedError(
                f"model '{model.name}' takes no text: it is described by /v2/models/{model.name}",
                model=model.name,
                task=model.task.value,
            )
        return HttpReply(encode(self._encoder_info.describe(model)))

    async def _run(self, value: dict[str, Any], call: Call) -> HttpReply | HttpStream:
        found, model = self._asked(value, call)
        if model.task is Task.GENERATE:
            return await self._generating.compat(value, call)
        return await self._encode(value, found, model, call)

    async def _encode(self, value: dict[str, Any], found: Shape, model: Model, call: Call) -> HttpReply:
        """Run what does not generate."""
        if model.text is None:
            return await self._encoding.predict(value, call)
        if found is Shape.RANKING:
            return await self._encoding.rerank(value, call)
        if model.task is Task.EMBED:
            if found is Shape.SIMILARITY:
                return await self._encoding.similarity(value, call)
            if model.text.sparse:
                return await self._encoding.embed_sparse(endpoint.embed_value(value), call)
            return await self._encoding.embed(endpoint.embed_value(value), call)
        if found is Shape.SIMILARITY or value.get("inputs") is None:
            raise refusal(found.capitalize() if found is Shape.SIMILARITY else "This", model)
        nested = endpoint.is_pipeline(value)
        return await self._encoding.predict(endpoint.label_value(value), call, nested=nested)

    async def _predict(self, instance: dict[str, Any], call: Call) -> bytes:
        """Answer one instance as JSON."""
        if instance.get("messages") is not None:
            whole = {"stream": False, "stream_options": None, "n": 1}
            reply = await self._openai.chat(instance | whole, call)
            return encode(text_of_chat(_complete(reply)))
        found, model = self._asked(instance, call)
        if model.task is Task.GENERATE:
            return encode(await self._generating.prediction(instance, call))
        return (await self._encode(instance, found, model, call)).body

    def _asked(self, value: dict[str, Any], call: Call) -> tuple[Shape, Model]:
        """Return what a body looks like and the model that answers it.

        Raises:
            InvalidArgumentError: the model does not do what the body asks for.
        """
        found = endpoint.shape(value)
        model = self._model(value, found, call)
        check_served(value, model)
        if model.task is Task.GENERATE and found in (Shape.RANKING, Shape.SIMILARITY):
            raise refusal(found.capitalize(), model)
        return found, model

    def _model(self, value: dict[str, Any], found: Shape, call: Call) -> Model:
        """Return the model that the URL or the body names, else the default for the shape of the body."""
        given = value.get("model")
        name = call.model_id or default_model(given if isinstance(given, str) else None)
        tasks = endpoint.TASKS[found] if name in DEFAULT_NAMES else ()
        model = call.model = self._repository.resolve(name, *tasks)
        return model

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer as the family that serves the model (TGI without one), or as vLLM where the body was its."""
        if call.form == VLLM:
            return pooling_requests.error_reply(error, call)
        model = call.model
        if model is None and call.model_id:
            with suppress(HeadraceError):
                model = self._repository.resolve(call.model_id)
        if model is not None and model.task in ENCODING:
            return tei_requests.error_reply(error, call)
        if error.metadata.get("field") == "instances" and isinstance(error, InputEmptyError):
            text = error.message
            return HttpReply(encode({"error": text, "error_type": text}), status=422)
        return tgi_requests.error_reply(error)


def _complete(reply: HttpReply | HttpStream) -> bytes:
    if isinstance(reply, HttpStream):
        msg = "a chat that is not streamed was answered in pieces"
        raise TypeError(msg)
    return reply.body
