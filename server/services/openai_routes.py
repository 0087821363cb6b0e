"""The chat and completions routes after parsing: also what other families' shared paths lead to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from headrace.server.codecs import oicm_chat
from headrace.server.codecs import openai_chat as chats
from headrace.server.codecs import openai_completions as completions
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_chat_answers import ChatChunks, chat_json
from headrace.server.codecs.openai_completion_answers import CompletionChunks, completion_json
from headrace.server.codecs.openai_errors import error_event
from headrace.server.codecs.openai_requests import truncated
from headrace.server.codecs.openai_structured import StructureBody, grammar
from headrace.server.codecs.openai_tools import ToolsBody
from headrace.server.codecs.openai_tools import tools as tool_plan
from headrace.server.codecs.openai_usage import stream_usage
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.services.openai_requests import OpenaiRequests
from headrace.server.services.streams import primed
from headrace.server.tasks.chat import chat_prompt
from headrace.server.tasks.generate import Generating, generation_settings
from headrace.server.tasks.merge import close_all, completed, merged
from headrace.server.tasks.prompts import Prompt

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar
    from headrace.server.repository.model import GenerationSettings
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.text_stream import TextStream


class OpenaiRoutes:
    """Answers chat and completions bodies, at once or as they come.

    Args:
        repository: the models.
        generating: the generate task.
        version: of the server.
    """

    def __init__(self, repository: Repository, generating: Generating, version: str) -> None:
        self._requests = OpenaiRequests(repository, generating, version)
        self._generating = generating

    async def chat(self, value: dict[str, Any], call: Call) -> HttpReply | HttpStream:
        """Continue a conversation."""
        given = oicm_chat.read(value, call.surface)
        value = given.value
        body = convert(value, chats.ChatBody, strict=False)
        sampling = self._requests.sampling(value, call)
        reports = stream_usage(body.stream_options, stream=bool(body.stream))
        model = self._requests.model(call, body.model)
        settings = generation_settings(model)
        asked = convert(value, ToolsBody, strict=False)
        tools = tool_plan(asked, settings.tool_parser, _grammar(value))
        wanted = chats.wanted(body, sampling, tools.grammar)
        text = given.raw(settings)
        if text is None:
            variables = oicm_chat.VARIABLES if call.surface == oicm_chat.SURFACE else None
            prompt = await chat_prompt(self._generating, model, chats.chat(body, tools.told, variables))
        else:
            prompt = Prompt(text, add_special_tokens=body.add_special_tokens is not False)
        prompt = truncated(prompt, sampling, settings, wanted.max_tokens)
        if tools.plan.needs_special_tokens:
            sampling.skip_special_tokens = False
        answer = self._requests.identity("chatcmpl-", model, sampling, call)
        chosen = await self._requests.options(model, sampling, wanted, answer)
        stream = await self._generating.start(model, prompt, chosen)
        prefix = chats.prefix(body)
        if body.stream:
            chunks = ChatChunks(answer, body, tools, reports, stream, chosen.sampling.n, prefix)
            return HttpStream(await primed(_chat_events(stream, chunks)), error_event)
        (generation,) = await completed([stream])
        scored = sampling.prompt_logprobs is not None
        return HttpReply(chat_json(answer, body, tools, generation, prefix, scored=scored))

    async def completion(self, value: dict[str, Any], call: Call) -> HttpReply | HttpStream:
        """Continue one or many prompts."""
        body = convert(value, completions.CompletionBody, strict=False)
        sampling = self._requests.sampling(value, call)
        reports = stream_usage(body.stream_options, stream=bool(body.stream))
        model = self._requests.model(call, body.model)
        settings = generation_settings(model)
        wanted = completions.wanted(body, sampling, _grammar(value), settings)
        prompts = completions.prompts(body, sampling, settings)
        answer = self._requests.identity("cmpl-", model, sampling, call)
        chosen = await self._requests.options(model, sampling, wanted, answer)
        streams = await self._requests.start(model, prompts, chosen)
        echoes = _texts(settings, prompts, streams) if body.echo else [""] * len(prompts)
        if body.stream:
            chunks = CompletionChunks(answer, body, sampling, reports, streams, echoes)
            return HttpStream(await primed(_completion_events(streams, chunks)), error_event)
        generations = await completed(streams)
        return HttpReply(completion_json(answer, body, sampling, generations, echoes))


def _grammar(value: dict[str, Any]) -> Grammar | None:
    return grammar(convert(value, StructureBody, strict=False))


def _texts(
    settings: GenerationSettings, prompts: Sequence[Prompt], streams: Sequence[TextStream]
) -> list[str]:
    """Return the prompts' texts: what was given, or what the ids mean, special tokens as they are written."""
    return [
        prompt.text
        if prompt.token_ids is None and prompt.truncate is None
        else settings.tokenizer.decode(stream.prompt_ids, skip_special_tokens=False)
        for prompt, stream in zip(prompts, streams, strict=True)
    ]


async def _chat_events(stream: TextStream, chunks: ChatChunks) -> AsyncGenerator[bytes, None]:
    async with stream:
        yield b""
        async for delta in stream:
            chunk = chunks.chunk(delta)
            if chunk:
                yield chunk
        yield chunks.end()


async def _completion_events(
    streams: Sequence[TextStream], chunks: CompletionChunks
) -> AsyncGenerator[bytes, None]:
    try:
        yield b""
        async with aclosing(merged(streams)) as deltas:
            async for prompt, delta in deltas:
                chunk = chunks.chunk(prompt, delta)
                if chunk:
                    yield chunk
        yield chunks.end()
    finally:
        await close_all(streams)
