"""Texts to tokens and back, for callers who want to see the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.tasks.text_encoding import CHARACTERS_PER_TOKEN, check_ids, resolve_prompt

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from headrace.server.repository.model import TextSettings
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        token_id: in the vocabulary.
        text: the part of the text that it stands for; of a special token its own name.
        special: whether the tokenizer added it.
        start: first byte of its part of the text in UTF-8; None for a special token.
        stop: the byte behind it.
    """

    token_id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


async def tokenize(
    tokenizing: Tokenizing,
    settings: TextSettings,
    texts: Sequence[str],
    *,
    add_special_tokens: bool,
    prompt_name: str | None = None,
) -> list[list[Token]]:
    """Return the tokens of each text, behind the named or default prompt.

    Raises:
        InputEmptyError: a text is empty.
        InvalidArgumentError: the model has no such prompt, or a text is absurdly long or not valid Unicode.
    """
    prompt = resolve_prompt(settings, prompt_name)
    limit = settings.max_tokens * CHARACTERS_PER_TOKEN
    for index, text in enumerate(texts):
        if not text:
            raise InputEmptyError("`inputs` cannot be empty", field="inputs", index=str(index))
        if len(text) > limit:
            raise InvalidArgumentError(
                f"`inputs` must have less than {limit} characters. Given: {len(text)}",
                field="inputs",
                index=str(index),
            )
    prompted = [prompt + text for text in texts]
    return await tokenizing.run(_encode, settings.tokenizer, prompted, add_special_tokens=add_special_tokens)


async def decode(
    tokenizing: Tokenizing,
    settings: TextSettings,
    rows: Sequence[Sequence[int]],
    *,
    skip_special_tokens: bool,
) -> list[str]:
    """Return the text of each list of token ids.

    Raises:
        InputEmptyError: a list is empty.
        InvalidArgumentError: an id is not in the vocabulary.
    """
    tokenizer = settings.tokenizer
    for index, ids in enumerate(rows):
        if not ids:
            raise InputEmptyError("`input_ids` cannot be empty", field="ids", index=str(index))
        check_ids(tokenizer, ids, field="ids", index=index)
    texts: list[str] = await tokenizing.run(
        tokenizer.decode_batch, [list(ids) for ids in rows], skip_special_tokens=skip_special_tokens
    )
    return texts


async def first_tokens(
    tokenizing: Tokenizing, settings: TextSettings, texts: Sequence[str], limit: int | None
) -> Sequence[str]:
    """Return what the first ``limit`` tokens of each text stand for; special tokens do not count.

    Raises:
        InvalidArgumentError: a text is not valid Unicode.
    """
    if limit is None:
        return texts
    return await tokenizing.run(_first_tokens, settings, texts, limit)


def _first_tokens(settings: TextSettings, texts: Sequence[str], limit: int) -> list[str]:
    most = min(limit, settings.max_tokens) * CHARACTERS_PER_TOKEN
    cut = [text[:most] for text in texts]
    encodings = _encode_batch(settings.tokenizer, cut, add_special_tokens=False)
    return [
        text[: encoding.offsets[limit - 1][1]] if len(encoding) > limit else text
        for text, encoding in zip(cut, encodings, strict=True)
    ]


def _encode_batch(tokenizer: Tokenizer, texts: list[str], *, add_special_tokens: bool) -> list[Encoding]:
    try:
        return tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
    except Exception as error:  # the library raises bare Exception
        raise InvalidArgumentError(f"tokenizer error {error}", field="inputs") from error


def _encode(tokenizer: Tokenizer, texts: list[str], *, add_special_tokens: bool) -> list[list[Token]]:
    encodings = _encode_batch(tokenizer, texts, add_special_tokens=add_special_tokens)
    found: list[list[Token]] = []
    for text, encoding in zip(texts, encodings, strict=True):
        starts = None if text.isascii() else [0, *accumulate(len(char.encode()) for char in text)]
        tokens = []
        for token_id, name, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        ):
            if special:
                tokens.append(Token(token_id, name, True, None, None))
                continue
            first, last = (start, stop) if starts is None else (starts[start], starts[stop])
            tokens.append(Token(token_id, text[start:stop], False, first, last))
        found.append(tokens)
    return found
