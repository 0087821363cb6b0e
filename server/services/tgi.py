"""The native routes of Text Generation Inference over REST, and vLLM's demo server, which shares one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.server.codecs import vllm, vllm_demo
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_options import options
from headrace.server.codecs.openai_requests import request_id
from headrace.server.codecs.openai_sampling import SamplingBody
from headrace.server.codecs.openai_structured import StructureBody, grammar
from headrace.server.codecs.tgi import tgi_object
from headrace.server.codecs.tgi_answers import chat_tokens_json
from headrace.server.errors import InvalidJsonError
from headrace.server.repository.model import SamplingDefaults, TextSettings
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.services.streams import primed
from headrace.server.services.tgi_requests import TgiRequests, error_reply
from headrace.server.tasks.bad_words import bad_word_ids
from headrace.server.tasks.chat import chat_prompt
from headrace.server.tasks.generate import Generating, generation_settings
from headrace.server.tasks.merge import completed
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.text_tokens import tokenize

if TYPE_CHECKING:
    from headrace.rest.v1 import tgi_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.tasks.text_stream import TextStream


class TgiService:
    """Facade of ``headrace.rest.v1.TgiService``.

    Args:
        requests: answers generate requests.
        generating: the generate task.
    """

    def __init__(self, requests: TgiRequests, generating: Generating) -> None:
        self._requests = requests
        self._generating = generating

    async def Generate(
        self, request: tgi_pb2.TgiServiceGenerateRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Continue ``inputs`` as TGI, or ``prompt`` as vLLM's demo server; with both the prompt counts."""
        value = tgi_object(request.body.content_type, request.body.data)
        if value.get("prompt") is not None:
            return await self._demo(value, call)
        return await self._requests.generate(value, call)

    async def GenerateStream(
        self, request: tgi_pb2.TgiServiceGenerateStreamRequest, call: Call
    ) -> HttpStream:
        """Continue a prompt, token by token."""
        return await self._requests.stream(tgi_object(request.body.content_type, request.body.data), call)

    async def ChatTokenize(self, request: tgi_pb2.TgiServiceChatTokenizeRequest, call: Call) -> HttpReply:
        """Tell what a conversation becomes; a last message of the assistant is continued."""
        value = tgi_object(request.body.content_type, request.body.data)
        body = convert(value, vllm.TokenizeBody, strict=False)
        if body.messages is None:
            raise InvalidJsonError("`messages` is missing", field="messages")
        if body.continue_final_message is None and body.messages:
            body.continue_final_message = body.messages[-1].get("role") == "assistant"
        model = self._requests.model(call, body.model)
        prompt = await chat_prompt(self._generating, model, vllm.conversation(body))
        settings = generation_settings(model)
        encoder = TextSettings(settings.tokenizer, settings.max_tokens)
        tokenizing = self._generating.tokenizing
        (tokens,) = await tokenize(tokenizing, encoder, [prompt.text], add_special_tokens=False)
        return HttpReply(chat_tokens_json(tokens, prompt.text))

    async def _demo(self, value: dict[str, Any], call: Call) -> HttpReply | HttpStream:
        """Answer a body with ``prompt``; the sampling defaults are vLLM's own, not the model's."""
        body = convert(value, vllm_demo.DemoBody, strict=False)
        sampling = convert(value, SamplingBody, strict=False)
        wanted = vllm_demo.wanted(body, grammar(convert(value, StructureBody, strict=False)))
        model = self._requests.model(call, body.model)
        settings = generation_settings(model)
        bad_words = await bad_word_ids(self._generating.tokenizing, settings.tokenizer, sampling.bad_words)
        name = request_id(sampling.request_id, call.headers) or ""
        neutral = replace(settings, defaults=SamplingDefaults())
        chosen = options(sampling, wanted, neutral, name, bad_words)
        stream = await self._generating.start(model, Prompt(body.prompt), chosen)
        if body.stream:
            pieces = vllm_demo.DemoPieces(body.prompt, chosen.sampling.n)
            chunks = await primed(_pieces(stream, pieces))
            return HttpStream(chunks, vllm_demo.error_piece, "text/event-stream", keep_alive=b"")
        (generation,) = await completed([stream])
        return HttpReply(vllm_demo.texts_json([body.prompt + sample.text for sample in generation.samples]))

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``."""
        return error_reply(error)


async def _pieces(stream: TextStream, pieces: vllm_demo.DemoPieces) -> AsyncGenerator[bytes, None]:
    async with stream:
        yield b""
        async for delta in stream:
            piece = pieces.piece(delta)
            if piece:
                yield piece
