"""Bodies of ``/v1/completions``, as OpenAI and vLLM define them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from headrace.server.codecs.openai_ranges import top_logprobs
from headrace.server.codecs.openai_requests import truncation
from headrace.server.codecs.openai_sampling import SamplingBody, Wanted
from headrace.server.codecs.openai_usage import StreamOptions
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.prompts import Prompt

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar
    from headrace.server.repository.model import GenerationSettings

DEFAULT_MAX_TOKENS: Final = 16
MAX_PROMPTS: Final = 1024


class CompletionBody(msgspec.Struct):
    """Fields beside those of :class:`SamplingBody`; None is absent."""

    prompt: str | list[str | int | list[int]] | None = None
    model: str | None = None
    max_tokens: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


def prompts(body: CompletionBody, sampling: SamplingBody, settings: GenerationSettings) -> list[Prompt]:
    """Return what is to be continued; a flat list of integers is one prompt.

    Raises:
        InvalidArgumentError: no prompt, too many, texts and ids mixed, or a ``suffix``.
    """
    if body.suffix:
        raise InvalidArgumentError(
            "suffix is not currently supported, it can be achieved by preprocessing the prompt.",
            field="suffix",
        )
    if not body.prompt:
        raise InvalidArgumentError(
            "Either prompt or prompt_embeds must be provided and non-empty.", field="prompt"
        )
    given: list[str | int | list[int]] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    ids = [entry for entry in given if isinstance(entry, int)]
    if ids and len(ids) < len(given):
        raise InvalidArgumentError("`prompt`: token ids and texts cannot be in one list", field="prompt")
    entries: list[str | list[int]] = (
        [ids] if ids else [entry for entry in given if not isinstance(entry, int)]
    )
    if len(entries) > MAX_PROMPTS:
        raise InvalidArgumentError(
            f"`prompt` has {len(entries)} entries, at most {MAX_PROMPTS} may be", field="prompt"
        )
    keep = truncation(sampling, settings, DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    special = body.add_special_tokens is not False
    keep_end = sampling.truncation_side != "right"
    return [
        Prompt(entry, None, special, keep, keep_end)
        if isinstance(entry, str)
        else Prompt("", entry, truncate=keep, keep_end=keep_end)
        for entry in entries
    ]


def wanted(
    body: CompletionBody, sampling: SamplingBody, grammar: Grammar | None, settings: GenerationSettings
) -> Wanted:
    """Return what the body asks of the engine.

    Raises:
        InvalidArgumentError: the fields contradict each other.
    """
    if body.stream and body.best_of is not None and body.best_of > (sampling.n or 1):
        raise InvalidArgumentError("best_of cannot be greater than n when streaming", field="best_of")
    if body.stream and sampling.prompt_logprobs is not None:
        raise InvalidArgumentError(
            "`prompt_logprobs` are not available when `stream=True`.", field="prompt_logprobs"
        )
    echoed = body.logprobs if body.echo and sampling.prompt_logprobs is None else None
    return Wanted(
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        may_be_empty=bool(body.echo),
        logprobs=body.logprobs,
        prompt_logprobs=top_logprobs("logprobs", echoed, "sample", settings.vocabulary_size),
        grammar=grammar,
        best_of=body.best_of,
    )
