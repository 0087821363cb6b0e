"""Answers of ``/v1/completions``: one object, or chunks as the text comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_chunks import COMPLETION, ChunkEncoder
from headrace.server.codecs.openai_identity import Identity
from headrace.server.codecs.openai_logprobs import CompletionLogprobs, prompt_logprobs
from headrace.server.codecs.openai_usage import StreamUsage, usage
from headrace.server.codecs.sse import DONE

if TYPE_CHECKING:
    from headrace.server.codecs.openai_completions import CompletionBody
    from headrace.server.codecs.openai_sampling import SamplingBody
    from headrace.server.tasks.generation import Delta, Generation, Sample
    from headrace.server.tasks.text_stream import TextStream

OBJECT: Final = "text_completion"


def completion_json(
    identity: Identity,
    body: CompletionBody,
    sampling: SamplingBody,
    generations: Sequence[Generation],
    echoes: Sequence[str],
) -> bytes:
    """Encode the answer; choices are ordered by prompt, then by sample.

    Args:
        identity: of the answer.
        body: the request.
        sampling: its sampling fields.
        generations: one for each prompt.
        echoes: the prompts' texts; empty texts where they are not repeated.
    """
    choices: list[dict[str, Any]] = []
    for generation, echo in zip(generations, echoes, strict=True):
        for sample in generation.samples:
            choices.append(_choice(len(choices), body, sampling, generation, sample, echo))
    prompt = sum(len(generation.prompt_ids) for generation in generations)
    completion = sum(len(sample.token_ids) for generation in generations for sample in generation.samples)
    cached = sum(generation.cached_tokens for generation in generations)
    return encode(
        {
            **identity.common(OBJECT),
            "choices": choices,
            "usage": usage(prompt, completion, cached),
            "service_tier": None,
            "system_fingerprint": identity.fingerprint,
            "kv_transfer_params": None,
        }
    )


def _choice(
    index: int,
    body: CompletionBody,
    sampling: SamplingBody,
    generation: Generation,
    sample: Sample,
    echo: str,
) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        repeated = generation.prompt_details if body.echo else ()
        logprobs = collector(body, sampling, echo).add(sample.details, repeated)
    wants_prompt = sampling.prompt_logprobs is not None
    return {
        "index": index,
        "text": echo + sample.text,
        "logprobs": logprobs,
        "finish_reason": sample.finish,
        "stop_reason": sample.stop,
        "token_ids": sample.token_ids if body.return_token_ids else None,
        "prompt_logprobs": prompt_logprobs(generation.prompt_details) if wants_prompt else None,
        "prompt_token_ids": generation.prompt_ids if body.return_token_ids else None,
    }


def collector(body: CompletionBody, sampling: SamplingBody, echo: str) -> CompletionLogprobs:
    """Return a new collector of the logprobs of one choice, which begins with ``echo``."""
    return CompletionLogprobs(
        as_ids=bool(body.return_tokens_as_token_ids),
        skip_special=sampling.skip_special_tokens is not False,
        echo=echo,
    )


class CompletionChunks:
    """Encodes the chunks of a streamed completion.

    Args:
        identity: of the answer.
        body: the request.
        sampling: its sampling fields.
        reports: which chunks carry the usage.
        streams: one for each prompt; what they know of the prompts is read as chunks are made.
        echoes: the prompts' texts; empty texts where they are not repeated.
    """

    def __init__(
        self,
        identity: Identity,
        body: CompletionBody,
        sampling: SamplingBody,
        reports: StreamUsage,
        streams: Sequence[TextStream],
        echoes: Sequence[str],
    ) -> None:
        self._body = body
        self._reports = reports
        self._streams = streams
        self._n = sampling.n or 1
        choices = self._n * len(streams)
        self._encoder = ChunkEncoder(identity.of_chunks(OBJECT), COMPLETION, choices, usage_null=reports.last)
        self._echoes: dict[int, str] = {}
        if body.echo:
            self._echoes = {index: echoes[index // self._n] for index in range(choices)}
        self._logprobs = [collector(body, sampling, echoes[index // self._n]) for index in range(choices)]
        self._plain = body.logprobs is None and not body.return_token_ids
        self._prompt_ids_due = set(range(choices)) if body.return_token_ids else set()
        self._completion_tokens = 0

    def chunk(self, prompt: int, delta: Delta) -> bytes:
        """Encode what is new of a sample; b"" when that is nothing to tell."""
        self._completion_tokens += len(delta.token_ids)
        index = prompt * self._n + delta.sample
        if self._plain and delta.finish is None and index not in self._echoes:
            if not delta.text:
                return b""
            return self._encoder.text(index, delta.text, self._usage() if self._reports.each else None)
        stream, body = self._streams[prompt], self._body
        echo = self._echoes.pop(index, None)
        logprobs = None
        if body.logprobs is not None:
            repeated = () if echo is None else stream.prompt_details
            logprobs = self._logprobs[index].add(delta.details, repeated)
        choice: dict[str, Any] = {
            "index": index,
            "text": (echo or "") + delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish,
            "stop_reason": delta.stop,
        }
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            choice["prompt_token_ids"] = stream.prompt_ids if index in self._prompt_ids_due else None
            self._prompt_ids_due.discard(index)
        if self._reports.each:
            return self._encoder.choice(choice, usage=self._usage())
        return self._encoder.choice(choice)

    def end(self) -> bytes:
        """Encode what follows the last chunk with a choice."""
        if not self._reports.last:
            return DONE
        return self._encoder.usage(self._usage()) + DONE

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(stream.prompt_ids) for stream in self._streams)
        cached = sum(stream.cached_tokens for stream in self._streams)
        return usage(prompt, self._completion_tokens, cached)
