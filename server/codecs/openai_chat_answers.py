"""Answers of ``/v1/chat/completions``: one object, or chunks as the text comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_chunks import CHAT, ChunkEncoder
from headrace.server.codecs.openai_logprobs import chat_logprobs, prompt_logprobs
from headrace.server.codecs.openai_messages import MessageReader, message
from headrace.server.codecs.openai_usage import StreamUsage, usage
from headrace.server.codecs.sse import DONE

if TYPE_CHECKING:
    from headrace.server.codecs.openai_chat import ChatBody
    from headrace.server.codecs.openai_identity import Identity
    from headrace.server.codecs.openai_tools import Tools
    from headrace.server.tasks.generation import Delta, Generation, Sample
    from headrace.server.tasks.text_stream import TextStream

OBJECT: Final = "chat.completion"
CHUNK: Final = "chat.completion.chunk"


def chat_json(
    identity: Identity, body: ChatBody, tools: Tools, generation: Generation, prefix: str, *, scored: bool
) -> bytes:
    """Encode the answer.

    Args:
        identity: of the answer.
        body: the request.
        tools: how tools take part.
        generation: what the engine made.
        prefix: text before each answer; "" unless the request wants an echo.
        scored: whether logprobs of the prompt were asked for.
    """
    samples = generation.samples
    completion = sum(len(sample.token_ids) for sample in samples)
    return encode(
        {
            **identity.common(OBJECT),
            "choices": [_choice(index, body, tools, sample, prefix) for index, sample in enumerate(samples)],
            "service_tier": None,
            "system_fingerprint": identity.fingerprint,
            "usage": usage(len(generation.prompt_ids), completion, generation.cached_tokens),
            "prompt_logprobs": prompt_logprobs(generation.prompt_details) if scored else None,
            "prompt_token_ids": generation.prompt_ids if body.return_token_ids else None,
            "kv_transfer_params": None,
        }
    )


def _choice(index: int, body: ChatBody, tools: Tools, sample: Sample, prefix: str) -> dict[str, Any]:
    reader = MessageReader(tools)
    found = message(reader, sample.text)
    if prefix:
        found["content"] = prefix + (found["content"] or "")
    logprobs = None
    if body.logprobs:
        logprobs = chat_logprobs(sample.details, as_ids=bool(body.return_tokens_as_token_ids))
    return {
        "index": index,
        "message": found,
        "logprobs": logprobs,
        "finish_reason": reader.finish_reason(sample.finish),
        "stop_reason": sample.stop,
        "token_ids": sample.token_ids if body.return_token_ids else None,
    }


class ChatChunks:
    """Encodes the chunks of a streamed chat answer.

    Args:
        identity: of the answer.
        body: the request.
        tools: how tools take part.
        reports: which chunks carry the usage.
        stream: what it knows of the prompt is read as chunks are made.
        samples: how many choices there are.
        prefix: text before each answer; "" unless the request wants an echo.
    """

    def __init__(
        self,
        identity: Identity,
        body: ChatBody,
        tools: Tools,
        reports: StreamUsage,
        stream: TextStream,
        samples: int,
        prefix: str,
    ) -> None:
        self._body = body
        self._reports = reports
        self._stream = stream
        self._prefix = prefix
        self._encoder = ChunkEncoder(identity.of_chunks(CHUNK), CHAT, samples, usage_null=reports.last)
        self._readers = [MessageReader(tools) for _ in range(samples)]
        self._begun = False
        self._plain = not body.logprobs and not body.return_token_ids
        self._completion_tokens = 0

    def chunk(self, delta: Delta) -> bytes:
        """Encode what is new of a sample; b"" when that is nothing to tell."""
        begin = b"" if self._begun else self._begin()
        self._completion_tokens += len(delta.token_ids)
        reader = self._readers[delta.sample]
        content, calls = reader.feed(delta.text, last=delta.finish is not None)
        if self._plain and not calls and delta.finish is None:
            return begin + self._text(delta.sample, content) if content else begin
        deltas: list[dict[str, Any]] = [{"content": content}] if content else []
        deltas += [{"tool_calls": [call]} for call in calls]
        if delta.finish is not None and (calls or not deltas):
            deltas.append({})  # the end of a call is a chunk of its own
        elif not deltas and self._tells(delta):
            deltas.append({"content": ""})
        pieces = [begin]
        for number, entry in enumerate(deltas, 1):
            finish = delta.finish if number == len(deltas) else None
            pieces.append(self._chunk(delta, entry, reader, first=number == 1, last=finish is not None))
        return b"".join(pieces)

    def _text(self, index: int, text: str) -> bytes:
        """Encode a chunk that is nothing but text: nearly all are."""
        return self._encoder.text(index, text, self._usage() if self._reports.each else None)

    def _tells(self, delta: Delta) -> bool:
        """Whether a delta without text has something to tell all the same."""
        return bool((self._body.logprobs or self._body.return_token_ids) and delta.token_ids)

    def _begin(self) -> bytes:
        """Encode the first chunk of each choice, with the role."""
        self._begun = True
        rest: dict[str, Any] = {}
        if self._body.return_token_ids:
            rest["prompt_token_ids"] = self._stream.prompt_ids
        pieces = []
        for index in range(len(self._readers)):
            role = {"role": "assistant", "content": ""}
            pieces.append(self._encode({"index": index, "delta": role}, rest))
            if self._prefix:
                pieces.append(self._text(index, self._prefix))
        return b"".join(pieces)

    def _chunk(
        self, delta: Delta, entry: dict[str, Any], reader: MessageReader, *, first: bool, last: bool
    ) -> bytes:
        """Encode one chunk; the first of a delta carries its tokens, the last its end."""
        choice: dict[str, Any] = {"index": delta.sample, "delta": entry, "logprobs": None}
        if self._body.logprobs and first:
            as_ids = bool(self._body.return_tokens_as_token_ids)
            choice["logprobs"] = chat_logprobs(delta.details, as_ids=as_ids)
        choice["finish_reason"] = None
        if last and delta.finish is not None:
            choice |= {"finish_reason": reader.finish_reason(delta.finish), "stop_reason": delta.stop}
        if self._body.return_token_ids and first:
            choice["token_ids"] = delta.token_ids
        return self._encode(choice, {})

    def _encode(self, choice: dict[str, Any], rest: dict[str, Any]) -> bytes:
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
        if self._reports.each:
            rest["usage"] = self._usage()
        elif rest and self._reports.last:
            rest["usage"] = None
        return self._encoder.choice(choice, **rest)

    def end(self) -> bytes:
        """Encode what follows the last chunk with a choice."""
        return self._encoder.usage(self._usage()) + DONE if self._reports.last else DONE

    def _usage(self) -> dict[str, Any]:
        return usage(len(self._stream.prompt_ids), self._completion_tokens, self._stream.cached_tokens)
