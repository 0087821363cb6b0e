"""Models that generate text as tensor models: what is asked, and the responses that it is answered with.

One request has one response with the whole text, or a response for each piece of it. Names and shapes of the
outputs are those of Triton's LLM backends (``repository/generation_tensors.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from headrace.server.errors import QueueFullError
from headrace.server.tasks.bad_words import bad_word_ids
from headrace.server.tasks.generate import generation_settings
from headrace.server.tasks.generation_outputs import TextOutputs
from headrace.server.tasks.infer_names import request_prefix
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.tensors import InferResponse, OutputTensor
from headrace.server.tasks.text_stream import complete

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.generation import Delta, GenerationOptions, Sample
    from headrace.server.tasks.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A tensor request to a model that generates.

    Attributes:
        id: the caller's id, "" for none; echoed.
        text: the prompt.
        options: how it is continued, but for ``bad_words``.
        bad_words: words that must not appear.
        stream: a response for each piece of text, instead of one.
        echo: the one response begins with the prompt.
        extras: outputs beside the text, in the order of the model's.
        ranked: tokens are described with the alternatives that the request asked for.
        names: outputs that the request names; empty for all.
        timeout: seconds until the request ends with DeadlineExceededError; None for no limit.
    """

    id: str
    text: str
    options: GenerationOptions
    bad_words: Sequence[str] = ()
    stream: bool = False
    echo: bool = False
    extras: tuple[str, ...] = ()
    ranked: bool = False
    names: frozenset[str] = frozenset()
    timeout: float | None = None

    @property
    def plain(self) -> bool:
        """Whether every response is a piece of one text and nothing else."""
        return self.stream and not (self.extras or self.names) and self.options.sampling.n == 1


async def start_text(generating: Generating, model: Model, asked: TextRequest) -> TextStream:
    """Start a request; what can be refused is refused before this returns.

    Args:
        generating: the generate task.
        model: a model that generates.
        asked: the request.

    Raises:
        HeadraceError: what ``Generating.start`` raises.
    """
    options = asked.options
    settings = generation_settings(model)
    words = await bad_word_ids(generating.tokenizing, settings.tokenizer, asked.bad_words)
    if words:
        options = replace(options, sampling=msgspec.structs.replace(options.sampling, bad_words=words))
    deadline = None if asked.timeout is None else asyncio.get_running_loop().time() + asked.timeout
    try:
        return await generating.start(model, Prompt(asked.text), options, deadline=deadline)
    except QueueFullError as error:
        raise QueueFullError(request_prefix(asked.id) + error.message, **error.metadata) from error


async def text_response(model: Model, asked: TextRequest, stream: TextStream) -> InferResponse:
    """Return the one response with all of the text; the stream is closed however this ends.

    Raises:
        HeadraceError: what the stream raises.
    """
    outputs = _outputs(asked, stream)
    return _response(model, asked, outputs.tensors((await complete(stream)).samples))


async def text_responses(
    model: Model, asked: TextRequest, stream: TextStream
) -> AsyncGenerator[tuple[InferResponse, bool], None]:
    """Yield the responses to a started request, each with whether it is the last. The stream is the caller's.

    Raises:
        HeadraceError: what the stream raises.
    """
    if not asked.stream:
        yield await text_response(model, asked, stream), True
        return
    outputs = _outputs(asked, stream)
    running = stream.samples
    async for delta in stream:
        running -= delta.finish is not None
        if not (delta.text or delta.finish or asked.extras):
            continue  # the token is part of a character, or of what may become a stop text
        rows: list[Delta | Sample | None] = [None] * stream.samples
        rows[delta.sample] = delta
        yield _response(model, asked, outputs.tensors(rows)), running == 0


def _outputs(asked: TextRequest, stream: TextStream) -> TextOutputs:
    prefix = asked.text if asked.echo else ""
    return TextOutputs(
        len(stream.prompt_ids), stream.samples, prefix, asked.extras, asked.names, ranked=asked.ranked
    )


def _response(model: Model, asked: TextRequest, tensors: list[OutputTensor]) -> InferResponse:
    return InferResponse(model.name, str(model.version), asked.id, tensors)
