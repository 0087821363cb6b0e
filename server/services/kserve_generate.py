"""``headrace.rest.v1.KserveGenerateService``: Triton's generate extension over REST."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from headrace.server.codecs.http_headers import retry_headers
from headrace.server.codecs.kserve_errors import error_event, error_json
from headrace.server.codecs.kserve_generate import (
    EXACTLY_ONE,
    TextEvents,
    check_encoding,
    decode_generate,
    encode_generate,
    generate_event,
)
from headrace.server.codecs.kserve_generate_fields import text_request
from headrace.server.errors import InvalidArgumentError
from headrace.server.services.call import HttpReply, HttpStream
from headrace.server.services.streams import primed
from headrace.server.tasks.generation_outputs import JSON_OUTPUTS
from headrace.server.tasks.infer import infer
from headrace.server.tasks.infer_generate import start_text, text_response, text_responses
from headrace.server.tasks.offload import call_by_size

if TYPE_CHECKING:
    from headrace.rest.v1 import kserve_pb2 as pb
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.infer_generate import TextRequest
    from headrace.server.tasks.tensors import InferRequest, InferResponse
    from headrace.server.tasks.text_stream import TextStream

    Request = pb.KserveGenerateServiceGenerateRequest | pb.KserveGenerateServiceGenerateStreamRequest


class KserveGenerateService:
    """Implementation of the facade.

    Args:
        repository: the models.
        generating: the generate task, with the threads for texts and long computations.
    """

    def __init__(self, repository: Repository, generating: Generating) -> None:
        self._repository = repository
        self._generating = generating
        self._tokenizing = generating.tokenizing

    async def Generate(self, request: pb.KserveGenerateServiceGenerateRequest, call: Call) -> HttpReply:
        """Run a model that answers once; one that generates text answers with all of it."""
        model, decoded = await self._decode(request, call)
        if model.generation is None:
            return HttpReply(await self._infer(model, decoded, encode_generate))
        asked = await self._text(model, decoded)
        if asked.stream:
            raise InvalidArgumentError(EXACTLY_ONE, field="stream")
        stream = await start_text(self._generating, model, asked)
        return HttpReply(encode_generate(await text_response(model, asked, stream), JSON_OUTPUTS))

    async def GenerateStream(
        self, request: pb.KserveGenerateServiceGenerateStreamRequest, call: Call
    ) -> HttpStream:
        """Run a model and send every answer as it is there.

        A model that generates text does so for each piece, unless ``stream`` is false. The first answer is
        waited for, so that its failure has a status.
        """
        model, decoded = await self._decode(request, call)
        if model.generation is None:
            return HttpStream(_once(await self._infer(model, decoded, generate_event)), error_event)
        asked = await self._text(model, decoded, stream=True)
        stream = await start_text(self._generating, model, asked)
        return HttpStream(await primed(_events(model, asked, stream)), error_event)

    async def _decode(self, request: Request, call: Call) -> tuple[Model, InferRequest]:
        model = call.model = self._repository.get(request.model, request.version)
        check_encoding(call.headers.get("content-encoding", ""))
        body = request.body.data
        decoded = await call_by_size(
            self._tokenizing, len(body), decode_generate, model, request.version, body
        )
        return model, decoded

    async def _text(self, model: Model, request: InferRequest, *, stream: bool = False) -> TextRequest:
        size = sum(len(tensor.data) for tensor in request.inputs)
        return await call_by_size(self._tokenizing, size, text_request, model, request, stream=stream)

    async def _infer(
        self, model: Model, request: InferRequest, encode: Callable[[InferResponse], bytes]
    ) -> bytes:
        response = await infer(self._tokenizing, model, request)
        size = sum(len(output.data) for output in response.outputs)
        return await call_by_size(self._tokenizing, size, encode, response)

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with the one member that Triton's clients read."""
        status, content = error_json(error)
        return HttpReply(content, status=status, headers=retry_headers(status))


async def _once(chunk: bytes) -> AsyncGenerator[bytes, None]:
    yield chunk


async def _events(model: Model, asked: TextRequest, stream: TextStream) -> AsyncGenerator[bytes, None]:
    """Yield nothing once there is a first response, then the responses."""
    chunks = _pieces(model, asked, stream) if asked.plain else _responses(model, asked, stream)
    async with stream, aclosing(chunks):
        first = await anext(chunks)
        yield b""
        yield first
        async for chunk in chunks:
            yield chunk


async def _pieces(model: Model, asked: TextRequest, stream: TextStream) -> AsyncGenerator[bytes, None]:
    event = TextEvents(model.name, str(model.version), asked.id).event
    async for delta in stream:
        if delta.text or delta.finish:
            yield event(delta.text)


async def _responses(model: Model, asked: TextRequest, stream: TextStream) -> AsyncGenerator[bytes, None]:
    async with aclosing(text_responses(model, asked, stream)) as responses:
        async for response, _ in responses:
            yield generate_event(response, JSON_OUTPUTS)
