"""What Text Generation Inference refuses, in its order and its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.server.codecs.families import FAMILIES
from headrace.server.errors import InputEmptyError, InputTooLongError, InvalidArgumentError

if TYPE_CHECKING:
    from headrace.server.codecs.tgi import GenerateBody, Parameters

_OWN_RANGES: Final = ("temperature", "repetition_penalty", "frequency_penalty", "top_p", "typical_p", "top_k")


@dataclass(frozen=True, slots=True)
class TgiLimits:
    """The limits that a server's owner sets; the defaults are TGI's own.

    Attributes:
        max_best_of: most samples to choose from.
        max_stop_sequences: most stop texts.
        max_top_n_tokens: most alternatives told with each token.
        max_concurrent_requests: requests that may wait for a model.
        validation_workers: threads that tokenise.
        compute_type: the value of ``x-compute-type``.
    """

    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_concurrent_requests: int = 1024
    validation_workers: int = 2
    compute_type: str = "cpu"


def check_body(body: GenerateBody, limits: TgiLimits, max_total_tokens: int, *, stream: bool) -> None:
    """Refuse what TGI's validation refuses before it tokenises.

    Raises:
        InvalidArgumentError: a parameter is out of range or contradicts another.
        InputEmptyError: there is nothing to continue.
    """
    given = body.chosen
    _check_samples(given, limits, stream=stream)
    family = FAMILIES["tgi"]
    for field in _OWN_RANGES:
        value = getattr(given, field)
        if value is not None:
            family.check(field, value)
    if given.max_new_tokens is not None:
        family.check("max_new_tokens", given.max_new_tokens)
    stops = len(given.stop or ())
    if stops > limits.max_stop_sequences:
        text = f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {stops}"
        raise InvalidArgumentError(text, field="stop")
    if given.seed is not None and (given.best_of or 1) > 1:
        raise InvalidArgumentError("`seed` must not be set when `best_of` > 1", field="seed")
    if given.seed is not None and given.seed < 0:
        raise InvalidArgumentError(f"`seed` must be >= 0. Given: {given.seed}", field="seed")
    top = given.top_n_tokens or 0
    if not 0 <= top <= limits.max_top_n_tokens:
        text = f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {top}"
        raise InvalidArgumentError(text, field="top_n_tokens")
    if not body.inputs:
        raise InputEmptyError("`inputs` cannot be empty", field="inputs")
    longest = max_total_tokens - 1
    if given.truncate is not None and not 0 < given.truncate <= longest:
        text = f"`truncate` must be strictly positive and less than {longest}. Given: {given.truncate}"
        raise InvalidArgumentError(text, field="truncate")


def _check_samples(given: Parameters, limits: TgiLimits, *, stream: bool) -> None:
    best_of = 1 if given.best_of is None else given.best_of
    if stream and best_of != 1:
        raise InvalidArgumentError("`best_of` != 1 is not supported when streaming tokens", field="best_of")
    if stream and given.decoder_input_details:
        raise InvalidArgumentError(
            "`decoder_input_details` == true is not supported when streaming tokens",
            field="decoder_input_details",
        )
    if not 0 < best_of <= limits.max_best_of:
        text = f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}"
        raise InvalidArgumentError(text, field="best_of")
    if best_of > 1 and given.temperature is None and not samples(given):
        raise InvalidArgumentError("you must use sampling when `best_of` is > 1", field="best_of")


def samples(given: Parameters) -> bool:
    """Tell whether tokens are drawn; a temperature, ``top_p`` or ``typical_p`` of 1 changes nothing."""
    return bool(
        given.do_sample
        or given.top_k is not None
        or any(share not in {None, 1} for share in (given.temperature, given.top_p, given.typical_p))
    )


def too_long(error: InputTooLongError, max_new_tokens: int | None) -> InputTooLongError:
    """Say in TGI's words what the task says of a prompt that does not fit.

    Args:
        error: the task's, with the numbers in its metadata.
        max_new_tokens: what the request asked for; None for as many as fit.
    """
    known = error.metadata
    if "tokens" not in known:  # refused for its characters, before it was tokenised
        return InputTooLongError(
            f"`inputs` must have less than {known['max_characters']} characters", **known
        )
    total, tokens = int(known["max_tokens"]), int(known["tokens"])
    new = max(0, total - tokens) if max_new_tokens is None else max_new_tokens
    if tokens + new > total:
        return InputTooLongError(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. Given: {tokens} `inputs` tokens "
            f"and {new} `max_new_tokens`",
            **known,
        )
    return InputTooLongError(f"`inputs` must have less than {total - 1} tokens. Given: {tokens}", **known)
