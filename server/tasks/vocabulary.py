"""What each token of a tokenizer stands for: its text, its bytes, whether it is special."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from headrace.server.tasks.generation import Alternative, TokenDetail

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.runtimes.generation.messages import Logprob

METASPACE: Final = "\u2581"


class Form(StrEnum):
    """How a tokenizer's decoder makes text of tokens."""

    BYTES = "bytes"  # byte-level: a token is bytes, written in an alphabet of printable characters
    PIECES = "pieces"  # SentencePiece: a token is text, or a single byte written <0xNN>
    WINDOW = "window"  # anything else: only the tokenizers library knows


class DecoderForm(NamedTuple):
    """What a decoder does; ``strip`` drops one space at the start of the text, ``fallback`` reads <0xNN>."""

    form: Form
    strip: bool = False
    fallback: bool = False


class TokenText(NamedTuple):
    """One token on its own: readable text (U+FFFD for what is not a whole character) and exact bytes."""

    text: str
    raw: bytes


def _byte_alphabet() -> Mapping[str, int]:
    """Return the characters that byte-level tokenizers (GPT-2's and its heirs) write bytes as."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(own)]
    alphabet = {chr(byte): byte for byte in own}
    alphabet |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return MappingProxyType(alphabet)


BYTE_ALPHABET: Final = _byte_alphabet()

# The steps of SentencePiece's decoders, as the tokenizers library describes them.
_SPACES: Final = MappingProxyType(
    {"type": "Replace", "pattern": MappingProxyType({"String": METASPACE}), "content": " "}
)
_FALLBACK: Final = MappingProxyType({"type": "ByteFallback"})
_FUSE: Final = MappingProxyType({"type": "Fuse"})
_STRIP: Final = MappingProxyType({"type": "Strip", "content": " ", "start": 1, "stop": 0})


class Vocabulary:
    """The tokens of one tokenizer; what was looked up is kept, so it grows to the tokenizer's size at most.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = decoder_form(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._pieces: dict[int, str | int] = {}
        self._texts: dict[int, TokenText] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a byte-level token; b"" for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = _alphabet_bytes(self.tokenizer.id_to_token(token_id) or "")
        return known

    def piece(self, token_id: int) -> str | int:
        """Return the text of a SentencePiece token, or the byte that it stands for."""
        known = self._pieces.get(token_id)
        if known is None:
            token = self.tokenizer.id_to_token(token_id) or ""
            byte = _fallback_byte(token) if self.decoder.fallback else None
            known = self._pieces[token_id] = token.replace(METASPACE, " ") if byte is None else byte
        return known

    def text(self, token_id: int) -> TokenText:
        """Return what the token is on its own, as it reads inside a text: a leading space is kept."""
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._token_text(token_id)
        return known

    def detail(self, token_id: int, logprob: Logprob | None = None) -> TokenDetail:
        """Describe a token of a prompt or an output."""
        text, raw = self.text(token_id)
        special = token_id in self.special
        if logprob is None:
            return TokenDetail(token_id, text, raw, special)
        top = tuple([Alternative(other, *self.text(other), value) for other, value in logprob.top])
        return TokenDetail(token_id, text, raw, special, logprob.logprob, logprob.rank, top)

    def _token_text(self, token_id: int) -> TokenText:
        if self.decoder.form is Form.BYTES:
            raw = self.token_bytes(token_id)
            return TokenText(raw.decode("utf-8", "replace"), raw)
        if self.decoder.form is Form.PIECES:
            piece = self.piece(token_id)
            if isinstance(piece, int):
                raw = bytes([piece])
                return TokenText(raw.decode("utf-8", "replace"), raw)
            return TokenText(piece, piece.encode())
        if self.tokenizer.id_to_token(token_id) is None:
            return TokenText("", b"")
        # Some decoders change the first token of a text, so the token is read behind another one.
        anchor = self.tokenizer.decode([token_id], skip_special_tokens=False)
        both = self.tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        text = both[len(anchor) :] if both.startswith(anchor) else anchor
        return TokenText(text, text.encode())


def decoder_form(tokenizer: Tokenizer) -> DecoderForm:
    """Tell what a tokenizer's decoder does, from its own description."""
    decoder = tokenizer.decoder
    if decoder is None:
        return DecoderForm(Form.WINDOW)
    description: dict[str, Any] = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = description.get("decoders", [description])
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return DecoderForm(Form.BYTES)
    fallback = _FALLBACK in steps
    strip = steps[-1:] == [_STRIP]
    expected = [_SPACES, *([_FALLBACK] if fallback else []), _FUSE, *([_STRIP] if strip else [])]
    return DecoderForm(Form.PIECES, strip, fallback) if steps == expected else DecoderForm(Form.WINDOW)


def _alphabet_bytes(token: str) -> bytes:
    """Read a byte-level token; one with any other character (an added token) is itself."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _fallback_byte(token: str) -> int | None:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None
