"""The ranges of generation parameters that hold for every family; the engine trusts what passed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from headrace.runtimes.generation.parameters import MAX_TOP_LOGPROBS
from headrace.server.errors import InputTooLongError, InvalidArgumentError

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.repository.model import GenerationSettings
    from headrace.server.tasks.generation import GenerationOptions

MAX_STOPS: Final = 64
MAX_STOP_CHARACTERS: Final = 4096
MAX_BIASED_TOKENS: Final = 4096
MAX_BAD_WORDS: Final = 1024
MAX_NAME_CHARACTERS: Final = 512
MAX_SENT_TOKENS: Final = 1 << 20
"""Token ids that the parameters of one request may name, counted for each prompt, for each goes to the engine
with all of them."""


def check_options(settings: GenerationSettings, options: GenerationOptions) -> None:
    """Refuse options that no engine could follow.

    Raises:
        InvalidArgumentError: a value is out of range; ``field`` names the parameter as OpenAI and vLLM do.
    """
    _check_numbers(options.sampling)
    _check_samples(settings, options.sampling)
    _check_tokens(settings, options.sampling)
    _check_texts(options)


def check_prompts(count: int, sampling: Sampling) -> None:
    """Refuse more prompts of one request than its parameters leave room for.

    Raises:
        InvalidArgumentError: the parameters, sent once for each of ``count`` prompts, are too large together.
    """
    named = (
        len(sampling.allowed_token_ids)
        + len(sampling.logit_bias)
        + len(sampling.stop_token_ids)
        + sum(map(len, sampling.bad_words))
    )
    if count > 1 and count * named > MAX_SENT_TOKENS:
        raise InvalidArgumentError(
            f"`prompt` has {count} entries, and `allowed_token_ids`, `bad_words`, `logit_bias` and "
            f"`stop_token_ids` name {named} tokens: expected at most {MAX_SENT_TOKENS} when multiplied, send "
            "fewer prompts in one request",
            field="prompt",
        )


def _check_numbers(sampling: Sampling) -> None:
    _within("max_tokens", sampling.max_tokens, 0, math.inf)  # the context is the limit
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        raise _refusal("min_tokens", sampling.min_tokens, f"0 to max_tokens ({sampling.max_tokens})")
    _within("temperature", sampling.temperature, 0, 10**6)
    _within("top_k", sampling.top_k, 0, 2**31 - 1)
    _share("top_p", sampling.top_p)
    _within("min_p", sampling.min_p, 0, 1)
    _share("typical_p", sampling.typical_p)
    if not 0 < sampling.repetition_penalty <= 10**6:
        expected = f"greater than 0, at most {10**6}"
        raise _refusal("repetition_penalty", sampling.repetition_penalty, expected)
    _within("frequency_penalty", sampling.frequency_penalty, -2, 2)
    _within("presence_penalty", sampling.presence_penalty, -2, 2)
    _within("length_penalty", sampling.length_penalty, -(10**6), 10**6)
    _within("priority", sampling.priority, -(2**63), 2**63 - 1)
    if sampling.seed is not None:
        _within("seed", sampling.seed, -(2**63), 2**64 - 1)
    if sampling.logprobs is not None:
        _within("logprobs", sampling.logprobs, 0, MAX_TOP_LOGPROBS)
    if sampling.prompt_logprobs is not None:
        _within("prompt_logprobs", sampling.prompt_logprobs, 0, MAX_TOP_LOGPROBS)


def _check_samples(settings: GenerationSettings, sampling: Sampling) -> None:
    most = settings.max_samples
    _within("n", sampling.n, 1, most)
    if not sampling.n <= sampling.best_of <= most:
        raise _refusal("best_of", sampling.best_of, f"n ({sampling.n}) to {most}")


def _check_tokens(settings: GenerationSettings, sampling: Sampling) -> None:
    size = settings.vocabulary_size
    _check_count("logit_bias", len(sampling.logit_bias), MAX_BIASED_TOKENS)
    check_vocabulary("logit_bias", [token for token, _ in sampling.logit_bias], size)
    for _, bias in sampling.logit_bias:
        if not math.isfinite(bias):
            raise _refusal("logit_bias", bias, "finite numbers")
    _check_count("allowed_token_ids", len(sampling.allowed_token_ids), size)
    check_vocabulary("allowed_token_ids", sampling.allowed_token_ids, size)
    _check_count("stop_token_ids", len(sampling.stop_token_ids), MAX_BIASED_TOKENS)
    check_vocabulary("stop_token_ids", sampling.stop_token_ids, size)
    _check_count("bad_words", len(sampling.bad_words), MAX_BAD_WORDS)
    for word in sampling.bad_words:
        if not word:
            raise InvalidArgumentError("`bad_words` has an empty entry", field="bad_words")
        _check_count("bad_words", len(word), MAX_BAD_WORDS)
        check_vocabulary("bad_words", word, size)


def _check_texts(options: GenerationOptions) -> None:
    sampling = options.sampling
    _check_count("stop", len(options.stop), MAX_STOPS)
    for stop in options.stop:
        if not stop:
            raise InvalidArgumentError("stop cannot contain an empty string.", field="stop")
    characters = sum(map(len, options.stop))
    if characters > MAX_STOP_CHARACTERS:
        raise InvalidArgumentError(
            f"`stop` has {characters} characters, expected at most {MAX_STOP_CHARACTERS} in all its texts",
            field="stop",
        )
    _check_length("request_id", options.request_id, MAX_NAME_CHARACTERS)
    _check_length("cache_salt", sampling.cache_salt, MAX_NAME_CHARACTERS)
    if sampling.adapter:
        raise InvalidArgumentError(
            f"the model has no adapter '{sampling.adapter}'", field="adapter", value=sampling.adapter
        )


def check_vocabulary(field: str, ids: Sequence[int], size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidArgumentError: an id is negative or not below ``size``.
    """
    if not ids or (min(ids) >= 0 and max(ids) < size):
        return
    token = next(token for token in ids if not 0 <= token < size)
    raise InvalidArgumentError(
        f"Token id {token} is out of vocabulary, `{field}` takes ids from 0 to {size - 1}",
        field=field,
        value=str(token),
    )


def check_length(settings: GenerationSettings, prompt: Sequence[int], wanted: int, *, cap: bool) -> int:
    """Return how many tokens may be generated after ``prompt``: ``wanted``, or less where ``cap`` allows.

    Raises:
        InputTooLongError: the prompt leaves no room, or not enough and ``cap`` is off. The metadata have
            ``tokens``, ``max_tokens`` (of the model) and, in the second case, ``requested``.
    """
    room = settings.max_tokens - len(prompt)
    if wanted <= room:
        return wanted
    known = {"field": "prompt", "tokens": str(len(prompt)), "max_tokens": str(settings.max_tokens)}
    start = f"This model's maximum context length is {settings.max_tokens} tokens. However, "
    if room < 1:
        raise InputTooLongError(
            f"{start}your prompt contains {len(prompt)} input tokens, which leaves no room for output. "
            "Please reduce the length of the input prompt. (context_length_exceeded)",
            **known,
        )
    if cap:
        return room
    raise InputTooLongError(
        f"{start}you requested {wanted} output tokens and your prompt contains {len(prompt)} input tokens, "
        f"{wanted + len(prompt)} together. Please ask for at most {room} output tokens or reduce the length "
        "of the input prompt. (context_length_exceeded)",
        requested=str(wanted),
        **known,
    )


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        broken = f"at most {high}" if value > high else f"at least {low}"
        raise _refusal(field, value, f"{low} to {high}" if high < 10**6 else broken)


def _share(field: str, value: float) -> None:
    if not 0 < value <= 1:
        raise _refusal(field, value, "greater than 0, at most 1")


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise _refusal(field, count, f"at most {most} entries")


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgumentError(
            f"`{field}` has {len(text)} characters, expected at most {most}", field=field
        )


def _refusal(field: str, value: float, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"`{field}` is {value}, expected {expected}", field=field, value=str(value))
