"""``headrace.v1.GenerationService``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, cast

from headrace.server.codecs import generation, generation_answers
from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.bad_words import bad_word_ids
from headrace.server.tasks.chat import chat_prompt
from headrace.server.tasks.generate import generation_settings
from headrace.server.tasks.generation_checks import check_vocabulary
from headrace.server.tasks.prompts import Prompt, prompt_ids
from headrace.server.tasks.text_stream import complete
from headrace.server.tasks.tool_calls import ToolPlan, parse
from headrace.server.tasks.tool_formats import Parsed
from headrace.v1 import generation_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.text_stream import TextStream

ChatRequest = generation_pb2.ChatRequest | generation_pb2.ChatStreamRequest


class GenerationService:
    """Continues prompts and conversations.

    Args:
        repository: the models.
        generating: the generate task.
    """

    def __init__(self, repository: Repository, generating: Generating) -> None:
        self._repository = repository
        self._generating = generating

    async def Generate(
        self, request: generation_pb2.GenerateRequest, call: Call
    ) -> generation_pb2.GenerateResponse:
        """Continue a prompt."""
        model = self._resolve(request.model, call)
        stream = await self._continue(request, model, call)
        result = await complete(stream)
        return generation_pb2.GenerateResponse(
            samples=generation_answers.texts(result.samples),
            start=generation_answers.start(model, stream, request.parameters),
            usage=generation_answers.usage(stream),
            timings=generation_answers.timings(stream.timeline),
        )

    async def GenerateStream(
        self, request: generation_pb2.GenerateStreamRequest, call: Call
    ) -> AsyncGenerator[generation_pb2.GenerateStreamResponse, None]:
        """Continue a prompt and stream what is new."""
        model = self._resolve(request.model, call)
        begun = False
        async with await self._continue(request, model, call) as stream:
            async for delta in stream:
                if not begun:
                    begun = True
                    start = generation_answers.start(model, stream, request.parameters)
                    yield generation_pb2.GenerateStreamResponse(start=start)
                yield generation_pb2.GenerateStreamResponse(delta=generation_answers.text_delta(delta))
        yield generation_pb2.GenerateStreamResponse(end=_end(stream))

    async def Chat(self, request: generation_pb2.ChatRequest, call: Call) -> generation_pb2.ChatResponse:
        """Answer a conversation."""
        model = self._resolve(request.model, call)
        stream, tools = await self._answer(request, model, call)
        result = await complete(stream)
        return generation_pb2.ChatResponse(
            choices=[
                generation_answers.choice(index, sample, parse(tools, sample.text))
                for index, sample in enumerate(result.samples)
            ],
            start=generation_answers.start(model, stream, request.parameters),
            usage=generation_answers.usage(stream),
            timings=generation_answers.timings(stream.timeline),
        )

    async def ChatStream(
        self, request: generation_pb2.ChatStreamRequest, call: Call
    ) -> AsyncGenerator[generation_pb2.ChatStreamResponse, None]:
        """Answer a conversation and stream what is new."""
        model = self._resolve(request.model, call)
        stream, tools = await self._answer(request, model, call)
        begun = False
        async with stream:
            parsers = [tools.parser() for _ in range(stream.samples)]
            async for delta in stream:
                if not begun:
                    begun = True
                    start = generation_answers.start(model, stream, request.parameters)
                    yield generation_pb2.ChatStreamResponse(start=start)
                parser = parsers[delta.sample]
                parsed, called = Parsed(delta.text), False
                if parser is not None:
                    parsed = parser.feed(delta.text)
                    if delta.finish is not None:
                        parsed = parsed.then(parser.finish())
                    called = parser.calls > 0
                message = generation_answers.chat_delta(delta, parsed, called=called)
                yield generation_pb2.ChatStreamResponse(delta=message)
        yield generation_pb2.ChatStreamResponse(end=_end(stream))

    async def Tokenize(
        self, request: generation_pb2.TokenizeRequest, call: Call
    ) -> generation_pb2.TokenizeResponse:
        """Turn a text or a conversation into tokens."""
        model = self._resolve(request.model, call)
        settings = generation_settings(model)
        if request.WhichOneof("input") == "conversation":
            conversation, _ = generation.chat(request.conversation, settings)
            prompt = await chat_prompt(self._generating, model, conversation)
        else:
            if not request.text:
                raise InputEmptyError("`text` cannot be empty", field="text")
            add = request.add_special_tokens if request.HasField("add_special_tokens") else True
            prompt = Prompt(request.text, add_special_tokens=add)
        ids = await prompt_ids(self._generating.tokenizing, settings, prompt)
        vocabulary = self._generating.vocabulary(model)
        tokens = [vocabulary.detail(token) for token in ids] if request.return_tokens else ()
        return generation_pb2.TokenizeResponse(
            token_ids=ids,
            tokens=generation_answers.details(tokens),
            text=prompt.text,
            max_tokens=settings.max_tokens,
            model=model.name,
            model_version=str(model.version),
        )

    async def Detokenize(
        self, request: generation_pb2.DetokenizeRequest, call: Call
    ) -> generation_pb2.DetokenizeResponse:
        """Turn tokens into text."""
        model = self._resolve(request.model, call)
        settings = generation_settings(model)
        ids = list(request.token_ids)
        check_vocabulary("token_ids", ids, settings.vocabulary_size)
        decode = settings.tokenizer.decode
        text = await self._generating.tokenizing.run(
            decode, ids, skip_special_tokens=request.skip_special_tokens
        )
        return generation_pb2.DetokenizeResponse(
            text=text, model=model.name, model_version=str(model.version)
        )

    async def Abort(self, request: generation_pb2.AbortRequest, call: Call) -> generation_pb2.AbortResponse:
        """End running requests."""
        if not request.request_id:
            raise InvalidArgumentError("`request_id` cannot be empty", field="request_id")
        return generation_pb2.AbortResponse(aborted=await self._generating.abort(request.request_id))

    def _resolve(self, name: str, call: Call) -> Model:
        model = call.model = self._repository.resolve(name, Task.GENERATE)
        return model

    async def _continue(
        self,
        request: generation_pb2.GenerateRequest | generation_pb2.GenerateStreamRequest,
        model: Model,
        call: Call,
    ) -> TextStream:
        """Start to continue a prompt."""
        received = time.perf_counter_ns()
        prompt = generation.prompt(request)
        return await self._start(model, prompt, ToolPlan(), request, call, received)

    async def _answer(self, request: ChatRequest, model: Model, call: Call) -> tuple[TextStream, ToolPlan]:
        """Start to answer a conversation."""
        received = time.perf_counter_ns()
        constrained = request.parameters.structured_output.WhichOneof("constraint") is not None
        conversation, tools = generation.chat(
            request.conversation, generation_settings(model), constrained=constrained
        )
        prompt = await chat_prompt(self._generating, model, conversation)
        return await self._start(model, prompt, tools, request, call, received), tools

    async def _start(
        self,
        model: Model,
        prompt: Prompt,
        tools: ToolPlan,
        request: generation_pb2.GenerateRequest | generation_pb2.GenerateStreamRequest | ChatRequest,
        call: Call,
        received: int,
    ) -> TextStream:
        settings = generation_settings(model)
        parameters = request.parameters
        bad_words = await bad_word_ids(self._generating.tokenizing, settings.tokenizer, parameters.bad_words)
        options = generation.options(parameters, settings, request.request_id, bad_words, tools)
        left = cast("float | None", call.context.time_remaining())
        deadline = None if left is None else asyncio.get_running_loop().time() + left
        return await self._generating.start(model, prompt, options, deadline=deadline, received=received)


def _end(stream: TextStream) -> generation_pb2.GenerationEnd:
    return generation_pb2.GenerationEnd(
        usage=generation_answers.usage(stream), timings=generation_answers.timings(stream.timeline)
    )
