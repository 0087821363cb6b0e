"""Prompts to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.server.errors import InputEmptyError, InputTooLongError, InvalidArgumentError
from headrace.server.tasks.generation_checks import check_vocabulary
from headrace.server.tasks.text_encoding import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.server.repository.model import GenerationSettings, TextSettings
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: a text, or token ids.

    Attributes:
        text: ignored when there are ids.
        token_ids: ids of the model's vocabulary, used as they are; None for a text.
        add_special_tokens: whether the tokenizer adds its own (a beginning-of-sequence token) to a text.
        truncate: keep at most this many tokens; None keeps all.
        keep_end: which ones ``truncate`` keeps: the last (the default) or the first.
    """

    text: str = ""
    token_ids: Sequence[int] | None = None
    add_special_tokens: bool = True
    truncate: int | None = None
    keep_end: bool = True


async def prompt_ids(tokenizing: Tokenizing, settings: GenerationSettings, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of ``prompt``; at least one.

    Raises:
        InputEmptyError: there is nothing to continue.
        InputTooLongError: the text is so long that it is refused before it is tokenised.
        InvalidArgumentError: an id is out of vocabulary, the text is not valid Unicode, or ``truncate`` is
            less than 1.
    """
    if prompt.truncate is not None and prompt.truncate < 1:
        raise InvalidArgumentError(
            f"`truncate` is {prompt.truncate}, expected at least 1",
            field="truncate",
            value=str(prompt.truncate),
        )
    if prompt.token_ids is not None:
        check_vocabulary("prompt", prompt.token_ids, settings.vocabulary_size)
        ids = tuple(prompt.token_ids)
    else:
        ids = await tokenizing.run(encode_prompt, settings, prompt)
    if not ids:
        raise InputEmptyError("`prompt` cannot be empty", field="prompt")
    if prompt.truncate is not None and len(ids) > prompt.truncate:
        return ids[-prompt.truncate :] if prompt.keep_end else ids[: prompt.truncate]
    return ids


def encode_prompt(settings: GenerationSettings | TextSettings, prompt: Prompt) -> tuple[int, ...]:
    """Tokenise the prompt's text, for a model of any kind; for a thread. Raises as :func:`prompt_ids`."""
    text, limit = prompt.text, settings.max_tokens * CHARACTERS_PER_TOKEN
    if len(text) > limit:
        if prompt.truncate is None:
            raise too_many_characters(settings, len(text))
        text = text[-limit:] if prompt.keep_end else text[:limit]
    return encode(settings.tokenizer, text, add_special_tokens=prompt.add_special_tokens)


def too_many_characters(settings: GenerationSettings | TextSettings, given: int) -> InputTooLongError:
    """Return what refuses a text of absurd length before it is tokenised."""
    limit = settings.max_tokens * CHARACTERS_PER_TOKEN
    return InputTooLongError(
        f"This model's maximum context length is {settings.max_tokens} tokens. However, your prompt contains "
        f"{given} characters, more than {limit}. Please reduce the length of the input prompt. "
        "(context_length_exceeded)",
        field="prompt",
        max_characters=str(limit),
        max_tokens=str(settings.max_tokens),
    )


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Tokenise one text.

    Raises:
        InvalidArgumentError: the text is not valid Unicode, or the tokenizer fails on it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as invalid:
        raise InvalidArgumentError(
            f"`prompt` is not valid Unicode: unpaired surrogate at character {invalid.start}", field="prompt"
        ) from None
    try:
        return tuple(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
    except BaseException as error:  # a panic in the library is not an Exception
        raise InvalidArgumentError(f"tokenizer error {error}", field="prompt") from error
