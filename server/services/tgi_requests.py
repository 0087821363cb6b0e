"""What Text Generation Inference's routes do after parsing: also what paths shared with others lead to."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from headrace.server.codecs.http_headers import retry_headers
from headrace.server.codecs.openai_requests import default_model, request_id
from headrace.server.codecs.tgi import GenerateBody, generate_body
from headrace.server.codecs.tgi_answers import (
    Answer,
    best_first,
    generate_json,
    generate_object,
    start_headers,
    timing_headers,
)
from headrace.server.codecs.tgi_errors import error_event, error_json
from headrace.server.codecs.tgi_events import TokenEvents
from headrace.server.codecs.tgi_grammar import refused
from headrace.server.codecs.tgi_info import info_json
from headrace.server.codecs.tgi_limits import TgiLimits, check_body, too_long
from headrace.server.codecs.tgi_options import best_of, describes, generate_options
from headrace.server.errors import HeadraceError, InputTooLongError, RequestRefusedError
from headrace.server.repository.model import Model, Task
from headrace.server.services.call import SSE_HEADERS, Call, HttpReply, HttpStream
from headrace.server.services.streams import primed
from headrace.server.tasks.generate import Generating, generation_settings
from headrace.server.tasks.merge import completed, started
from headrace.server.tasks.prompts import Prompt

if TYPE_CHECKING:
    from headrace.server.codecs.http_headers import Headers
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.text_stream import TextStream

KEEP_ALIVE = b":\n\n"


class TgiRequests:
    """Answers parsed generate requests.

    Args:
        repository: the models.
        generating: the generate task.
        limits: of the family.
        version: of the server.
    """

    def __init__(
        self, repository: Repository, generating: Generating, limits: TgiLimits, version: str
    ) -> None:
        self.limits = limits
        self._repository = repository
        self._generating = generating
        self._version = version

    async def generate(self, value: dict[str, Any], call: Call) -> HttpReply:
        """Answer ``/generate``: one object."""
        found, headers = await self._answer(generate_body(value), call, whole=False)
        return HttpReply(generate_json(found, listed=False), headers=headers)

    async def compat(self, value: dict[str, Any], call: Call) -> HttpReply | HttpStream:
        """Answer ``POST /``: a list of one, or a stream; the text has the prompt unless it may not."""
        body = generate_body(value)
        if body.stream:
            return await self._stream(body, call, whole=True)
        found, headers = await self._answer(body, call, whole=True)
        return HttpReply(generate_json(found, listed=True), headers=headers)

    async def stream(self, value: dict[str, Any], call: Call) -> HttpStream:
        """Answer ``/generate_stream``: an event for each token."""
        return await self._stream(generate_body(value), call, whole=False)

    async def prediction(self, instance: dict[str, Any], call: Call) -> str:
        """Return the text of one of ``/vertex``'s instances."""
        found, _ = await self._answer(generate_body(instance), call, whole=False)
        text: str = found["generated_text"]
        return text

    def info(self, call: Call, model: Model) -> HttpReply:
        """Describe the server and a model that generates."""
        call.model = model
        total = generation_settings(model).max_tokens
        return HttpReply(info_json(model.name, total, self.limits, self._version))

    def model(self, call: Call, name: str | None) -> Model:
        """Return the model that the URL or the body names, else the default one."""
        model = call.model = self._repository.resolve(call.model_id or default_model(name), Task.GENERATE)
        return model

    async def _answer(self, body: GenerateBody, call: Call, *, whole: bool) -> tuple[dict[str, Any], Headers]:
        """Return the answer and its headers; ``whole`` is the default of ``return_full_text``."""
        streams, model = await self._start(body, call, stream=False)
        generations = await completed(streams)
        answers = [Answer(*pair) for pair in zip(generations, (s.seed for s in streams), strict=True)]
        if any(answer.sample.finish == "abort" for answer in answers):
            raise HeadraceError("Incomplete generation")
        if len(answers) > 1:
            answers = best_first(answers)
        given = body.chosen
        found = generate_object(
            answers,
            _prefix(body, whole=whole),
            self._generating.vocabulary(model).special,
            details=describes(given),
            top=bool(given.top_n_tokens),
        )
        return found, timing_headers(self.limits.compute_type, len(body.inputs), answers)

    async def _stream(self, body: GenerateBody, call: Call, *, whole: bool) -> HttpStream:
        (stream,), model = await self._start(body, call, stream=True)
        given = body.chosen
        events = TokenEvents(
            stream,
            _prefix(body, whole=whole),
            self._generating.vocabulary(model).special,
            next(iter(generation_settings(model).eos_ids), 0),
            details=bool(given.details),
            top=bool(given.top_n_tokens),
        )
        headers = (*SSE_HEADERS, *start_headers(self.limits.compute_type, len(body.inputs)))
        chunks = await primed(_events(stream, events))
        return HttpStream(chunks, error_event, "text/event-stream", headers, KEEP_ALIVE)

    async def _start(self, body: GenerateBody, call: Call, *, stream: bool) -> tuple[list[TextStream], Model]:
        """Check a request and start its samples, or none when one is refused."""
        received = time.perf_counter_ns()
        model = self.model(call, body.model)
        total = generation_settings(model).max_tokens
        given = body.chosen
        check_body(body, self.limits, total, stream=stream)
        options = generate_options(given, total, request_id(None, call.headers) or "", stream=stream)
        prompt = Prompt(body.inputs, truncate=given.truncate)

        async def start(_: int) -> TextStream:
            try:
                return await self._generating.start(
                    model, prompt, options, cap=given.max_new_tokens is None, received=received
                )
            except InputTooLongError as error:
                raise too_long(error, given.max_new_tokens) from None
            except RequestRefusedError as error:  # the engine cannot compile the grammar
                raise refused(error.message) from None

        return await started(range(best_of(given)), start), model


def error_reply(error: HeadraceError) -> HttpReply:
    """Answer ``{"error", "error_type"}``."""
    status, body = error_json(error)
    return HttpReply(body, status=status, headers=retry_headers(status))


def _prefix(body: GenerateBody, *, whole: bool) -> str:
    """Return what stands before the generated text."""
    wanted = body.chosen.return_full_text
    return body.inputs if (whole if wanted is None else wanted) else ""


async def _events(stream: TextStream, events: TokenEvents) -> AsyncGenerator[bytes, None]:
    async with stream:
        yield b""
        async for delta in stream:
            chunk = events.events(delta)
            if chunk:
                yield chunk
