"""What the generate task gives to ``headrace.v1`` messages."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from headrace.server.codecs.typed import duration
from headrace.v1 import common_pb2, generation_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.generation import Delta, Sample, Timeline, TokenDetail
    from headrace.server.tasks.text_stream import TextStream
    from headrace.server.tasks.tool_formats import Parsed, ToolCallDelta

REASONS: Final = MappingProxyType(
    {
        "stop": generation_pb2.FINISH_REASON_STOP,
        "length": generation_pb2.FINISH_REASON_LENGTH,
        "abort": generation_pb2.FINISH_REASON_ABORT,
    }
)


def start(
    model: Model, stream: TextStream, parameters: generation_pb2.GenerationParameters
) -> generation_pb2.GenerationStart:
    """Tell who answers; once the first delta is there."""
    ids = stream.prompt_ids if parameters.return_prompt_token_ids else ()
    return generation_pb2.GenerationStart(
        model=model.name,
        model_version=str(model.version),
        seed=stream.seed,
        prompt_token_ids=ids,
        prompt_tokens=details(stream.prompt_details),
    )


def usage(stream: TextStream) -> common_pb2.Usage:
    """Count what a finished stream consumed."""
    prompt, generated = len(stream.prompt_ids), stream.generated_tokens
    return common_pb2.Usage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        cached_tokens=stream.cached_tokens,
    )


def timings(timeline: Timeline) -> common_pb2.Timings:
    """Tell where the time of a finished request went."""
    received, started = timeline.received, timeline.started or timeline.finished
    result = common_pb2.Timings(
        total_duration=duration(timeline.finished - received),
        tokenization_duration=duration(timeline.tokenized - received),
        queue_duration=duration(started - timeline.tokenized),
        inference_duration=duration(timeline.finished - started),
    )
    if timeline.first_token:
        result.first_token_duration.CopyFrom(duration(timeline.first_token - received))
    return result


def finish(ended: Delta | Sample, *, called: bool = False) -> generation_pb2.Finish:
    """Tell how a sample ended; ``called`` says that it made tool calls of its own accord."""
    reason = REASONS[ended.finish or "stop"]
    if called and ended.finish == "stop":
        reason = generation_pb2.FINISH_REASON_TOOL_CALLS
    result = generation_pb2.Finish(reason=reason, end_of_sequence=ended.eos)
    if isinstance(ended.stop, str):
        result.stop_text = ended.stop
    elif ended.stop is not None:
        result.stop_token_id = ended.stop
    return result


def details(tokens: Iterable[TokenDetail]) -> list[generation_pb2.TokenDetail]:
    """Describe tokens."""
    return [
        generation_pb2.TokenDetail(
            id=token.token_id,
            text=token.text,
            raw=token.raw,
            special=token.special,
            logprob=token.logprob,
            rank=token.rank,
            top=[
                generation_pb2.TokenAlternative(
                    id=other.token_id, text=other.text, raw=other.raw, logprob=other.logprob
                )
                for other in token.top
            ],
        )
        for token in tokens
    ]


def text_delta(delta: Delta) -> generation_pb2.TextDelta:
    """Tell what is new of a continuation."""
    message = generation_pb2.TextDelta(index=delta.sample, text=delta.text, token_ids=delta.token_ids)
    if delta.details:
        message.tokens.extend(details(delta.details))
    if delta.finish is not None:
        message.finish.CopyFrom(finish(delta))
    return message


def texts(samples: Sequence[Sample]) -> list[generation_pb2.GeneratedText]:
    """Tell whole continuations."""
    return [
        generation_pb2.GeneratedText(
            index=index,
            text=sample.text,
            token_ids=sample.token_ids,
            tokens=details(sample.details),
            finish=finish(sample),
        )
        for index, sample in enumerate(samples)
    ]


def chat_delta(delta: Delta, parsed: Parsed, *, called: bool) -> generation_pb2.ChatDelta:
    """Tell what is new of an answer; ``called`` says that it has tool calls."""
    message = generation_pb2.ChatDelta(
        index=delta.sample,
        content=parsed.content,
        tool_calls=[_call_delta(call) for call in parsed.calls],
        token_ids=delta.token_ids,
    )
    if delta.details:
        message.tokens.extend(details(delta.details))
    if delta.finish is not None:
        message.finish.CopyFrom(finish(delta, called=called))
    return message


def choice(index: int, sample: Sample, parsed: Parsed) -> generation_pb2.ChatChoice:
    """Tell a whole answer; ``parsed`` has all of its text."""
    calls: list[generation_pb2.ToolCall] = []
    for delta in parsed.calls:
        if delta.name:
            calls.append(generation_pb2.ToolCall(id=call_id(), name=delta.name))
        calls[delta.index].arguments += delta.arguments
    return generation_pb2.ChatChoice(
        index=index,
        message=generation_pb2.ChatMessage(role="assistant", content=parsed.content, tool_calls=calls),
        token_ids=sample.token_ids,
        tokens=details(sample.details),
        finish=finish(sample, called=bool(calls)),
    )


def call_id() -> str:
    """Return a new id for a tool call; OpenAI's form."""
    return f"call_{secrets.token_hex(12)}"


def _call_delta(call: ToolCallDelta) -> generation_pb2.ToolCallDelta:
    return generation_pb2.ToolCallDelta(
        index=call.index, id=call_id() if call.name else "", name=call.name, arguments=call.arguments
    )
