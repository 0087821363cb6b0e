"""Tokens to text as they come: only complete characters, at a cost that does not grow with the text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from headrace.server.tasks.vocabulary import Form

if TYPE_CHECKING:
    from headrace.server.tasks.vocabulary import Vocabulary

REPLACEMENT: Final = "\ufffd"
CONTEXT_TOKENS: Final = 6
"""Tokens before the new ones that are decoded with them where only the library knows how tokens join."""
HELD_TOKENS: Final = 8
"""More tokens than a character has bytes: text that still looks incomplete after them is what it is."""


class Detokenizer(Protocol):
    """The text of one sample, token by token.

    The texts returned, joined, are what the tokenizer makes of all tokens together, or, with a prompt, what
    they add to the prompt's text. Bytes that are no UTF-8 become U+FFFD; where a tokenizer makes U+FFFD of
    valid characters too because invalid bytes follow, those that were returned before stay.
    """

    def feed(self, token_id: int) -> str:
        """Take the next token and return the characters that it completes; may be empty."""

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for incomplete characters."""


def detokenizer(
    vocabulary: Vocabulary, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True
) -> Detokenizer:
    """Return what makes text of the tokens that follow ``prompt``.

    Args:
        vocabulary: of the model.
        prompt: token ids before the first; empty for the start of a text, where some tokenizers drop a space.
        skip_special_tokens: special tokens give no text.
    """
    skip = vocabulary.special if skip_special_tokens else frozenset[int]()
    decoder = vocabulary.decoder
    if decoder.form is Form.BYTES:
        return _Bytes(vocabulary, skip)
    if decoder.form is Form.PIECES:
        start = decoder.strip and all(token in skip or vocabulary.piece(token) == "" for token in prompt)
        return _Pieces(vocabulary, skip, start=start)
    return _Window(vocabulary, skip, prompt)


class _Bytes:
    """Byte-level tokens: their bytes are one UTF-8 stream."""

    __slots__ = ("_decode", "_known", "_skip")

    def __init__(self, vocabulary: Vocabulary, skip: frozenset[int]) -> None:
        self._known = vocabulary.token_bytes
        self._skip = skip
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token_id: int) -> str:
        return "" if token_id in self._skip else self._decode(self._known(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)


class _Pieces:
    """SentencePiece tokens: texts, and single bytes that spell what the vocabulary has no token for."""

    __slots__ = ("_pending", "_piece", "_skip", "_start")

    def __init__(self, vocabulary: Vocabulary, skip: frozenset[int], *, start: bool) -> None:
        self._piece = vocabulary.piece
        self._skip = skip
        self._start = start
        self._pending = b""

    def feed(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        piece = self._piece(token_id)
        if piece == "":  # an id without a token: what is around it belongs together
            return ""
        if isinstance(piece, str):
            text = self.flush() + piece if self._pending else piece
        else:
            text = self._byte(piece)
        if self._start and text:
            self._start = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        pending, self._pending = self._pending, b""
        return REPLACEMENT * len(pending)

    def _byte(self, byte: int) -> str:
        self._pending += bytes([byte])
        try:
            text = self._pending.decode()
        except UnicodeDecodeError as error:
            return "" if error.reason == "unexpected end of data" else self.flush()
        self._pending = b""
        return text


class _Window:
    """Any other decoder: the last tokens are decoded with and without the new ones, and compared."""

    __slots__ = ("_ids", "_read", "_skip", "_start", "_tokenizer")

    def __init__(self, vocabulary: Vocabulary, skip: frozenset[int], prompt: Sequence[int]) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._skip = skip
        self._ids = [token for token in prompt[-4 * CONTEXT_TOKENS :] if token not in skip][-CONTEXT_TOKENS:]
        self._read = len(self._ids)

    def feed(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._ids.append(token_id)
        return self._new(len(self._ids) - self._read > HELD_TOKENS)

    def flush(self) -> str:
        return self._new(True) if len(self._ids) > self._read else ""

    def _new(self, final: bool) -> str:
        decode, ids, read = self._tokenizer.decode, self._ids, self._read
        before = decode(ids[:read], skip_special_tokens=False) if read else ""
        after = decode(ids, skip_special_tokens=False)
        if not final and (after.endswith(REPLACEMENT) or len(after) <= len(before)):
            return ""
        self._read = len(ids)
        if self._read > 2 * CONTEXT_TOKENS:
            del ids[:-CONTEXT_TOKENS]
            self._read = CONTEXT_TOKENS
        return after[len(before) :]
