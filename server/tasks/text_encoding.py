"""Text to token ids, synchronously: what one call in the tokeniser's pool does for a group of requests.

Nothing here changes a tokenizer's own settings, so one tokenizer may serve several threads and requests with
different truncation at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

from headrace.server.errors import HeadraceError, InputEmptyError, InputTooLongError, InvalidArgumentError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from headrace.server.repository.model import TextSettings

Text = str | tuple[str, str] | list[int]
"""One input: a text, a pair of texts that the model reads together, or token ids of its vocabulary."""

Cuttable = TypeVar("Cuttable", str, list[int])

CHARACTERS_PER_TOKEN: Final = 250
"""A text of more than ``max_tokens`` times this many characters is cut or refused before it is tokenised."""


class TokenIds(list[int]):
    """Token ids that the model reads as they are (OpenAI, vLLM); a plain list of ids is read back to text."""

    __slots__ = ()


class Rendered(str):
    """A text that is whole, such as a conversation that a template has written: no prompt goes before it."""

    __slots__ = ()


class Direction(StrEnum):
    """Which end of a text is cut when it is too long."""

    RIGHT = "right"
    LEFT = "left"


@dataclass(slots=True)
class Tokens:
    """One tokenised input.

    Attributes:
        ids: int32 little-endian token ids, special tokens included, at most ``max_tokens`` of them.
        type_ids: int32 little-endian segment of each token (0 or 1), None when all are 0.
        count: number of tokens.
    """

    ids: bytes
    type_ids: bytes | None
    count: int


@dataclass(slots=True)
class EncodeRequest:
    """The inputs of one caller and how to tokenise them.

    ``prompt`` is put before every text; ``special`` lets the tokenizer add its special tokens to texts.
    """

    settings: TextSettings
    texts: Sequence[Text]
    truncate: bool
    direction: Direction
    prompt: str
    special: bool = True


def resolve_prompt(settings: TextSettings, name: str | None) -> str:
    """Return the text that is put before every input: the named prompt, or the default one.

    Raises:
        InvalidArgumentError: the model has no prompt of that name.
    """
    name = name or settings.default_prompt
    if not name:
        return ""
    if name in settings.prompts:
        return settings.prompts[name]
    if settings.prompts:
        known = ", ".join(f'"{prompt}"' for prompt in settings.prompts)
        reason = f"it was not found in the Sentence Transformers prompts. Available prompts: [{known}]"
    else:
        reason = "no prompts were found in the Sentence Transformers configuration"
    raise InvalidArgumentError(
        f"`default-prompt-name` is set to `{name}` but {reason}", field="prompt_name", value=name
    )


def encode_group(requests: Sequence[EncodeRequest]) -> list[list[Tokens] | HeadraceError]:
    """Tokenise the inputs of all requests; a request whose input is wrong has its error instead of tokens.

    Requests for the same tokenizer share one native call, because every such call gives up the interpreter's
    lock once and waits to have it back.
    """
    answers: list[list[Tokens] | HeadraceError] = [[] for _ in requests]
    batches: dict[tuple[Tokenizer, bool], list[tuple[int, int, str | tuple[str, str]]]] = {}
    for number, request in enumerate(requests):
        try:
            prepared = [_prepare(request, index, text) for index, text in enumerate(request.texts)]
        except HeadraceError as error:
            answers[number] = error
            continue
        answers[number] = found = [Tokens(b"", None, 0)] * len(prepared)
        for index, entry in enumerate(prepared):
            if isinstance(entry, Tokens):
                found[index] = entry
                continue
            text, add_special = entry
            key = (request.settings.tokenizer, add_special)
            batches.setdefault(key, []).append((number, index, text))
    for (tokenizer, add_special), batch in batches.items():
        encodings = _encode(tokenizer, add_special, [text for _, _, text in batch])
        for (number, index, _), encoding in zip(batch, encodings, strict=True):
            answer = answers[number]
            if isinstance(answer, HeadraceError):
                continue
            try:
                answer[index] = _finish(requests[number], index, encoding)
            except HeadraceError as error:
                answers[number] = error
    return answers


def _prepare(request: EncodeRequest, index: int, text: Text) -> tuple[str | tuple[str, str], bool] | Tokens:
    """Return what the tokenizer is to encode, and whether it adds special tokens; or the tokens given."""
    if not text or (isinstance(text, tuple) and not any(text)):
        raise InputEmptyError("`inputs` cannot be empty", field="inputs", index=str(index))
    if isinstance(text, tuple):
        return (_fit(request, index, text[0]), _fit(request, index, text[1])), request.special
    if isinstance(text, str):
        prompt = "" if isinstance(text, Rendered) else request.prompt
        return _fit(request, index, prompt + text), request.special
    if isinstance(text, TokenIds):
        return _given(request, index, text)
    # Ids are read back to text so that truncation and prompts mean the same for them; without a prompt their
    # special tokens survive the round trip and none are added (Text Embeddings Inference does the same).
    tokenizer = request.settings.tokenizer
    check_ids(tokenizer, text, field="inputs", index=index)
    text = _fit(request, index, text)
    if request.prompt:
        return request.prompt + tokenizer.decode(text, skip_special_tokens=True), True
    return tokenizer.decode(text, skip_special_tokens=False), False


def _given(request: EncodeRequest, index: int, ids: TokenIds) -> Tokens:
    """Return token ids that are not tokenised again, cut or refused like any other input."""
    check_ids(request.settings.tokenizer, ids, field="inputs", index=index)
    limit = request.settings.max_tokens
    if len(ids) > limit and not request.truncate:
        raise _too_long(index, len(ids), limit)
    kept = ids[-limit:] if request.direction is Direction.LEFT else ids[:limit]
    return _tokens(kept, [])


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], *, field: str, index: int) -> None:
    """Refuse token ids that a tokenizer does not have; ``field`` and ``index`` say where they were given.

    Ids may lie above the number of tokens, for a vocabulary may have gaps.

    Raises:
        InvalidArgumentError: the first such id.
    """
    size = tokenizer.get_vocab_size()
    for token in ids:
        if not 0 <= token < size and (token < 0 or token >= 1 << 32 or tokenizer.id_to_token(token) is None):
            raise InvalidArgumentError(
                f"token id {token} is out of vocabulary, expected 0 to {size - 1}",
                field=field,
                index=str(index),
                value=str(token),
            )


def _fit(request: EncodeRequest, index: int, text: Cuttable) -> Cuttable:
    """Cut a text of absurd length before it is tokenised, or refuse it."""
    limit = request.settings.max_tokens * CHARACTERS_PER_TOKEN
    if len(text) <= limit:
        return text
    if not request.truncate:
        raise InputTooLongError(
            f"`inputs` must have less than {limit} characters. Given: {len(text)}",
            field="inputs",
            index=str(index),
            characters=str(len(text)),
            max_characters=str(limit),
            max_tokens=str(request.settings.max_tokens),
        )
    return text[-limit:] if request.direction is Direction.LEFT else text[:limit]


def _encode(
    tokenizer: Tokenizer, add_special: bool, texts: list[str | tuple[str, str]]
) -> Iterable[Encoding | HeadraceError]:
    try:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=add_special)
    except BaseException:  # noqa: BLE001 - a panic in the library is not an Exception; find its text below
        return [_encode_one(tokenizer, add_special, text) for text in texts]


def _encode_one(
    tokenizer: Tokenizer, add_special: bool, text: str | tuple[str, str]
) -> Encoding | HeadraceError:
    try:
        return tokenizer.encode_batch_fast([text], add_special_tokens=add_special)[0]
    except BaseException as error:  # noqa: BLE001 - as above
        try:
            "".join(text).encode()
        except UnicodeEncodeError as invalid:
            return InvalidArgumentError(
                f"`inputs` is not valid Unicode: unpaired surrogate at character {invalid.start}",
                field="inputs",
            )
        return InvalidArgumentError(f"tokenizer error {error}", field="inputs")


def _finish(request: EncodeRequest, index: int, encoding: Encoding | HeadraceError) -> Tokens:
    if isinstance(encoding, HeadraceError):
        raise encoding
    count, limit = len(encoding), request.settings.max_tokens
    if count == 0:
        raise InputEmptyError(
            "`inputs` cannot be empty: the tokenizer makes no tokens of it", field="inputs", index=str(index)
        )
    if count <= limit:
        return _tokens(encoding.ids, encoding.type_ids)
    if not request.truncate:
        raise _too_long(index, count, limit)
    return _tokens(*truncated(encoding, limit, request.direction))


def _too_long(index: int, count: int, limit: int) -> InputTooLongError:
    return InputTooLongError(
        f"`inputs` must have less than {limit} tokens. Given: {count}",
        field="inputs",
        index=str(index),
        tokens=str(count),
        max_tokens=str(limit),
    )


def _tokens(ids: list[int], type_ids: list[int]) -> Tokens:
    """Pack ids and the segments of their tokens; no segments are all 0."""
    layout = f"<{len(ids)}i"
    return Tokens(
        ids=struct.pack(layout, *ids),
        type_ids=struct.pack(layout, *type_ids) if any(type_ids) else None,
        count=len(ids),
    )


def truncated(encoding: Encoding, limit: int, direction: Direction) -> tuple[list[int], list[int]]:
    """Return ids and type ids cut to ``limit`` tokens; tokens that the post-processor added stay.

    A pair is cut as the tokenizers library's ``longest_first`` does: first the longer text down to the length
    of the shorter one, then both alike, the second keeping the odd token. ``direction`` says which end of
    each text is cut.
    """
    owner: list[int | None] = encoding.sequence_ids
    first, second = owner.count(0), owner.count(1)
    room = max(limit - (len(owner) - first - second), 0)
    keep = _share(first, second, room)
    drop: list[tuple[int, int]] = []
    for sequence, (length, kept) in enumerate(zip((first, second), keep, strict=True)):
        if kept < length:
            start = owner.index(sequence)
            start += 0 if direction is Direction.LEFT else kept
            drop.append((start, start + length - kept))
    ids, type_ids = encoding.ids, encoding.type_ids
    for start, stop in reversed(drop):
        del ids[start:stop], type_ids[start:stop]
    return ids[:limit], type_ids[:limit]


def _share(first: int, second: int, room: int) -> tuple[int, int]:
    """Divide ``room`` tokens between two texts."""
    if first + second <= room:
        return first, second
    if second == 0:
        return room, 0
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = room - short
    return (long, short) if first > second else (short, long)
