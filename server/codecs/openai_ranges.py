"""Fields of OpenAI's and vLLM's sampling parameters that are written in a way of their own.

Messages are vLLM's. Ranges that hold for every family are checked by the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.runtimes.generation.parameters import MAX_TOP_LOGPROBS
from headrace.server.codecs.integers import INT64, below_int64
from headrace.server.errors import InvalidArgumentError

MAX_CACHE_SALT: Final = 128


def out_of_range(field: str, rule: str, value: float) -> InvalidArgumentError:
    """Return the error of a number that breaks ``rule``."""
    return InvalidArgumentError(f"{field} {rule}, got {value}.", field=field, value=str(value))


def int64(field: str, value: float | None) -> int | None:
    """Return an integer of 64 bits.

    Raises:
        InvalidArgumentError: not a whole number, or larger; the message has the words of vLLM's validator.
    """
    if value is None:
        return None
    if value >= INT64:
        raise out_of_range(field, f"should be at most {INT64 - 1} (less_than_equal)", value)
    if below_int64(value):
        raise out_of_range(field, f"should be at least {-INT64} (greater_than_equal)", value)
    if value % 1:  # true of NaN too
        raise out_of_range(field, "should be a whole number", value)
    return int(value)


def top_logprobs(field: str, count: int | None, kind: str, vocabulary_size: int) -> int | None:
    """Return how many alternatives to report; -1 is the whole vocabulary, if it may be that many.

    Args:
        field: name of the field.
        count: its value.
        kind: ``sample`` or ``prompt``, for the message.
        vocabulary_size: of the model.

    Raises:
        InvalidArgumentError: out of range.
    """
    if count is None:
        return None
    wanted = vocabulary_size if count == -1 else count
    if wanted < 0:
        raise out_of_range(field, "must be non-negative or -1", count)
    if wanted > MAX_TOP_LOGPROBS:
        raise InvalidArgumentError(
            f"Requested {kind} logprobs of {wanted}, which is greater than max allowed: {MAX_TOP_LOGPROBS}",
            field=field,
            value=str(count),
        )
    return wanted


def logit_bias(biases: Mapping[str, float] | list[float] | None) -> tuple[tuple[int, float], ...]:
    """Return (token id, bias) pairs; a bias beyond ±100 is cut to it, NaN stays. A list says nothing.

    Raises:
        InvalidArgumentError: a key is no token id.
    """
    if not biases or isinstance(biases, list):
        return ()
    try:
        # in this order NaN comes through, for the task to refuse
        pairs = {int(key): min(max(bias, -100.0), 100.0) for key, bias in biases.items()}
    except ValueError:
        raise InvalidArgumentError(
            "logit_bias contains key(s) that cannot be converted to token ids (integers)", field="logit_bias"
        ) from None
    return tuple(pairs.items())


def cache_salt(salt: str | None) -> str:
    """Return the salt of cached prefixes.

    Raises:
        InvalidArgumentError: empty, too long, or with characters that vLLM keeps for itself.
    """
    if salt is None:
        return ""
    if not 0 < len(salt) <= MAX_CACHE_SALT or any(character in salt for character in "@/\\\0"):
        raise InvalidArgumentError(
            f"cache_salt must be a non-empty string of at most {MAX_CACHE_SALT} characters without '@', '/', "
            "'\\' and NUL",
            field="cache_salt",
        )
    return salt
