"""From OpenAI's and vLLM's sampling fields to what the generate task takes; messages are vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from headrace.runtimes.generation.parameters import Sampling
from headrace.server.codecs.families import FAMILIES
from headrace.server.codecs.openai_ranges import (
    cache_salt,
    int64,
    logit_bias,
    out_of_range,
    top_logprobs,
)
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.generation import GenerationOptions

if TYPE_CHECKING:
    from headrace.server.codecs.openai_sampling import SamplingBody, Wanted
    from headrace.server.repository.model import GenerationSettings

Number = TypeVar("Number", int, float)

MIN_TEMPERATURE: Final = 0.01
"""Temperatures between 0 and this are raised to it: dividing by them overflows."""


def options(
    body: SamplingBody,
    wanted: Wanted,
    settings: GenerationSettings,
    request_id: str,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> GenerationOptions:
    """Build the task's options: the request's values, else the model's defaults, else neutral ones.

    Args:
        body: the sampling fields.
        wanted: what the other fields ask for.
        settings: the model's.
        request_id: by which the request can be aborted.
        bad_words: ``body.bad_words`` as token ids.

    Raises:
        InvalidArgumentError: a value is wrong in OpenAI's way of writing it; the task checks the rest.
    """
    defaults, vocabulary = settings.defaults, settings.vocabulary_size
    temperature = _first(body.temperature, defaults.temperature, 1.0)
    top_k = _first(body.top_k, defaults.top_k, 0)
    n, best_of = _samples(body, wanted.best_of, greedy=temperature == 0)
    logprobs = top_logprobs(wanted.logprobs_field, wanted.logprobs, "sample", vocabulary)
    prompt_logprobs = wanted.prompt_logprobs
    if prompt_logprobs is None:
        prompt_logprobs = top_logprobs("prompt_logprobs", body.prompt_logprobs, "prompt", vocabulary)
    if body.allowed_token_ids is not None and not body.allowed_token_ids:
        raise InvalidArgumentError("allowed_token_ids is not None and empty!", field="allowed_token_ids")
    sampling = Sampling(
        max_tokens=_max_tokens(wanted, settings),
        min_tokens=body.min_tokens or 0,
        temperature=max(temperature, MIN_TEMPERATURE) if temperature > 0 else temperature,
        top_k=0 if top_k == -1 else top_k,
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        typical_p=_first(body.typical_p, defaults.typical_p, 1.0),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=logit_bias(body.logit_bias),
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        bad_words=bad_words,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        seed=int64("seed", body.seed),
        n=n,
        best_of=best_of,
        beam=bool(body.use_beam_search),
        length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        watermark=bool(body.watermarking),
        grammar=wanted.grammar,
        priority=int64("priority", body.priority) or 0,
        cache_salt=cache_salt(body.cache_salt),
    )
    return GenerationOptions(
        sampling,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        details=wanted.details or logprobs is not None or prompt_logprobs is not None,
        request_id=request_id,
    )


def _max_tokens(wanted: Wanted, settings: GenerationSettings) -> int:
    """Return the limit on new tokens; what does not fit beside the prompt is cut by the task."""
    if wanted.max_tokens is None:
        return settings.defaults.max_new_tokens or settings.max_tokens
    if not wanted.may_be_empty:
        FAMILIES["openai"].check(wanted.max_tokens_field, wanted.max_tokens)
    return wanted.max_tokens


def _samples(body: SamplingBody, best_of: int | None, *, greedy: bool) -> tuple[int, int]:
    """Return ``n`` and ``best_of``."""
    n = 1 if body.n is None else body.n
    chosen_from = n if best_of is None else best_of
    if greedy and not body.use_beam_search:
        if n > 1:
            raise out_of_range("n", "must be 1 when using greedy sampling", n)
        chosen_from = min(chosen_from, 1)  # all samples would be equal
    return n, chosen_from


def _first(given: Number | None, default: Number | None, neutral: Number) -> Number:
    if given is not None:
        return given
    return neutral if default is None else default
