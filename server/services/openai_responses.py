"""The Responses API over REST, without stored state."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.server.codecs import openai_responses as responses
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_requests import fitting, json_object
from headrace.server.codecs.openai_response_events import ResponseWriter
from headrace.server.codecs.openai_response_items import new_response
from headrace.server.codecs.openai_structured import grammar
from headrace.server.codecs.openai_tools import tools as tool_plan
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.services.openai_requests import OpenaiRequests, error_reply
from headrace.server.services.streams import primed
from headrace.server.tasks.chat import chat_prompt
from headrace.server.tasks.generate import Generating, generation_settings

if TYPE_CHECKING:
    from headrace.rest.v1 import openai_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.text_stream import TextStream


class OpenaiResponsesService:
    """Facade of ``headrace.rest.v1.OpenaiResponsesService``.

    Args:
        repository: the models.
        generating: the generate task.
        version: of the server.
    """

    def __init__(self, repository: Repository, generating: Generating, version: str) -> None:
        self._requests = OpenaiRequests(repository, generating, version)
        self._generating = generating

    async def CreateResponse(
        self, request: openai_pb2.OpenaiResponsesServiceCreateResponseRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Answer a conversation that the request holds entirely."""
        value = json_object(request.body.content_type, request.body.data)
        body = convert(value, responses.ResponsesBody, strict=False)
        sampling = responses.only_sample(self._requests.sampling(value, call))
        responses.check(body)
        model = self._requests.model(call, body.model)
        settings = generation_settings(model)
        constraint = grammar(responses.structure(body))
        tools = tool_plan(responses.tools(body), settings.tool_parser, constraint)
        wanted = responses.wanted(body, tools.grammar)
        prompt = await chat_prompt(self._generating, model, responses.chat(body, tools.told))
        if body.truncation == "auto":
            prompt = replace(prompt, truncate=fitting(settings, wanted.max_tokens))
        if tools.plan.needs_special_tokens:
            sampling.skip_special_tokens = False
        answer = self._requests.identity("resp_", model, sampling, call)
        chosen = await self._requests.options(model, sampling, wanted, answer)
        begun = new_response(answer, body, chosen.sampling)
        writer = ResponseWriter(begun, tools, with_logprobs=body.with_logprobs)
        stream = await self._generating.start(model, prompt, chosen)
        if body.stream:
            return HttpStream(await primed(_events(stream, writer)), writer.failed)
        async with stream:
            async for delta in stream:
                writer.add(delta)
        writer.end(len(stream.prompt_ids), stream.cached_tokens)
        return HttpReply(writer.json())

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with vLLM's error object."""
        return error_reply(error)


async def _events(stream: TextStream, writer: ResponseWriter) -> AsyncGenerator[bytes, None]:
    async with stream:
        yield b""
        yield writer.begin()
        async for delta in stream:
            chunk = writer.add(delta)
            if chunk:
                yield chunk
        yield writer.end(len(stream.prompt_ids), stream.cached_tokens)
