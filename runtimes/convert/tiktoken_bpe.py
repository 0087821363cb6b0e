"""Turns a pickled tiktoken ``Encoding`` into a tokenizer.json, without running the pickle's code.

tiktoken keeps one table, bytes → rank, and merges the neighbours whose joined bytes have the lowest rank. The
``tokenizers`` library keeps a list of pairs instead, so every split of a token into two tokens becomes a
pair, in the order of the joined token's rank: then both merge the same pairs.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from typing import Any, Final

from headrace.runtimes.convert.byte_level_bpe import byte_level, tokenizer_document
from headrace.runtimes.convert.job import ConversionError

_PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_SHIFT: Final = 0x100


@dataclass(frozen=True)
class Encoding:
    """The data of a tiktoken tokenizer.

    ``pattern`` splits a text into pieces, ``ranks`` maps the bytes of a token to its id, ``special`` maps the
    names of control tokens to theirs.
    """

    pattern: str
    ranks: dict[bytes, int]
    special: dict[str, int]


class _Recorder:
    """Stands in for tiktoken's class while unpickling: keeps the state that is set."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows one name, tiktoken's ``Encoding``, and gives the recorder for it: no other code is reached."""

    def find_class(self, module: str, name: str) -> type[_Recorder]:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Recorder
        msg = f"the tokenizer's pickle names {module}.{name}; only tiktoken.core.Encoding is allowed"
        raise ConversionError(msg)


def read_encoding(pickled: bytes) -> Encoding:
    """The data of a pickled tiktoken ``Encoding``.

    Raises:
        ConversionError: the pickle names anything else, or its state is not an encoding's.
    """
    try:
        recorder = _Unpickler(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        msg = f"the tokenizer's pickle cannot be read: {error}"
        raise ConversionError(msg) from error
    state = recorder.state if isinstance(recorder, _Recorder) else {}
    try:
        encoding = Encoding(state["pat_str"], dict(state["mergeable_ranks"]), dict(state["special_tokens"]))
    except (TypeError, KeyError) as error:
        msg = "the tokenizer's pickle is not that of an encoding"
        raise ConversionError(msg) from error
    return encoding


def byte_characters() -> dict[int, str]:
    """GPT-2's alphabet: one visible character for each byte, itself where it is printable in Latin-1."""
    alphabet = {byte: chr(byte) for byte in _PRINTABLE}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(_SHIFT + len(alphabet) - len(_PRINTABLE))
    return alphabet


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that join to a token, by the rank of that token, then of the parts."""
    found = [
        (rank, ranks[token[:cut]], ranks[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    tokens = {rank: token for token, rank in ranks.items()}
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def tokenizer_json(encoding: Encoding, *, begin: str) -> str:
    """The tokenizer.json of an encoding; every text gets the special token ``begin`` in front.

    Special tokens are in the vocabulary but not declared as such: a text that spells one out is split like
    any other, as tiktoken's ``encode_ordinary`` does, so nobody can forge a control token.
    """
    alphabet = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in encoding.ranks.items()} | encoding.special
    start, first = {"id": begin, "type_id": 0}, {"id": "A", "type_id": 0}
    split = {
        "type": "Split",
        "pattern": {"Regex": encoding.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    content = tokenizer_document(
        dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        [[spell(left), spell(right)] for left, right in merges(encoding.ranks)],
        pre_tokenizers=[split, byte_level(use_regex=False)],
        decoder=byte_level(use_regex=False),
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": start}, {"Sequence": first}],
            "pair": [{"SpecialToken": start}, {"Sequence": first}, {"Sequence": first | {"id": "B"}}],
            "special_tokens": {begin: {"id": begin, "ids": [encoding.special[begin]], "tokens": [begin]}},
        },
        ignore_merges=True,
    )
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
