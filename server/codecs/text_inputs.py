"""The ways in which JSON families give texts: one or many, as text or as token ids, alone or in pairs."""

from __future__ import annotations

from typing import Final

from headrace.server.errors import BatchTooLargeError, InputEmptyError, InvalidArgumentError, InvalidJsonError
from headrace.server.tasks.text_encoding import Direction, Text

MAX_INPUTS: Final = 2048
"""Most inputs, or pairs, of one request where its family has no limit of its own: OpenAI's for embeddings."""

Inputs = str | list[str | int | list[int]]
"""A text, token ids, or a list of texts and lists of token ids."""

PairInputs = str | list[str | list[str]]
"""A text, ``[text]``, a pair ``[text, text]``, or a list of ``[text]`` and pairs."""


def plain_texts(inputs: str | list[str], *, field: str, limit: int = MAX_INPUTS) -> list[str]:
    """Return the texts, of which there is at least one.

    Raises:
        InputEmptyError: an empty list.
        BatchTooLargeError: more than ``limit`` texts.
    """
    found = [inputs] if isinstance(inputs, str) else inputs
    if not found:
        raise InputEmptyError(f"`{field}` cannot be empty", field=field)
    check_count(len(found), limit)
    return found


def texts(inputs: Inputs, *, field: str, limit: int = MAX_INPUTS) -> list[Text]:
    """Return the single inputs; a flat list of integers is one tokenised input.

    Raises:
        InputEmptyError: an empty list.
        InvalidJsonError: integers and other things in one list.
        BatchTooLargeError: more than ``limit`` inputs.
    """
    if isinstance(inputs, str):
        return [inputs]
    if not inputs:
        raise InputEmptyError(f"`{field}` cannot be empty", field=field)
    if isinstance(inputs[0], int):
        ids = [entry for entry in inputs if isinstance(entry, int)]
        if len(ids) == len(inputs):
            return [ids]
    found: list[Text] = [entry for entry in inputs if not isinstance(entry, int)]
    if len(found) < len(inputs):
        raise InvalidJsonError(f"`{field}`: token ids and texts cannot be in one list", field=field)
    check_count(len(found), limit)
    return found


def pairs(inputs: PairInputs, *, field: str, limit: int) -> tuple[list[Text], bool]:
    """Return the single texts and pairs, and whether they were given as a batch.

    Raises:
        InvalidJsonError: a list that is neither a text, a pair, nor a batch of them.
        BatchTooLargeError: more than ``limit`` inputs.
    """
    if isinstance(inputs, str):
        return [inputs], False
    flat = [entry for entry in inputs if isinstance(entry, str)]
    if flat:
        if len(flat) < len(inputs):
            raise _neither(f"`{field}`: texts and lists cannot be in one list", field)
        return [_single_or_pair(flat, field)], False
    if not inputs:
        raise _neither(f"`{field}`: invalid length 0", field)
    batch = [_single_or_pair(entry, field) for entry in inputs if not isinstance(entry, str)]
    check_count(len(batch), limit)
    return batch, True


def _single_or_pair(entry: list[str], field: str) -> Text:
    if len(entry) == 1:
        return entry[0]
    if len(entry) == 2:
        return entry[0], entry[1]
    raise _neither(f"`{field}`: invalid length {len(entry)}", field)


def _neither(problem: str, field: str) -> InvalidJsonError:
    return InvalidJsonError(
        f"{problem}, expected a string, a pair of strings [string, string] or a batch of mixed strings and "
        "pairs [[string], [string, string], ...]",
        field=field,
    )


def check_count(count: int, limit: int = MAX_INPUTS) -> None:
    """Refuse a request with more than ``limit`` inputs.

    Raises:
        BatchTooLargeError: there are more.
    """
    if count > limit:
        raise BatchTooLargeError(
            f"batch size {count} > maximum allowed batch size {limit}", size=str(count), max_size=str(limit)
        )


def direction(name: str | None) -> Direction:
    """Read a truncation direction, in any letter case; None is right.

    Raises:
        InvalidArgumentError: another word.
    """
    try:
        return Direction((name or "right").lower())
    except ValueError:
        raise InvalidArgumentError(
            f"`truncation_direction` is '{name}', expected 'Left' or 'Right'",
            field="truncation_direction",
            value=str(name),
        ) from None


def kept_tokens(keep: int | None, most: int) -> int | None:
    """Return how many tokens of an input are kept, None for as many as there is room for.

    Args:
        keep: ``truncate_prompt_tokens``: None and -1 set no limit of their own.
        most: what the model takes.

    Raises:
        InvalidArgumentError: the number is out of range.
    """
    if keep is None or keep == -1:
        return None
    if keep > most:
        raise InvalidArgumentError(
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation "
            "size.",
            field="truncate_prompt_tokens",
        )
    if keep < 1:
        raise InvalidArgumentError(
            f"truncate_prompt_tokens must be -1 or at least 1, got {keep}.", field="truncate_prompt_tokens"
        )
    return keep
