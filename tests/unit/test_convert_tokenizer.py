"""A pickled tiktoken encoding becomes a tokenizer.json with the same ids; a hostile pickle does nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from headrace.runtimes.convert.job import ConversionError
from headrace.runtimes.convert.tiktoken_bpe import (
    Encoding,
    byte_characters,
    merges,
    read_encoding,
    tokenizer_json,
)
from headrace.runtimes.convert.tiktoken_check import differing

PATTERN = r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
WORDS = (
    b"ab",
    b"bc",
    b"abc",
    b"cd",
    b"abcd",
    b" a",
    b" ab",
    b"bcd",
    "é".encode(),
    "日".encode()[:2],
    "日".encode(),
)
"""Tokens with several ways to build them: abc is ab+c and a+bc, abcd is ab+cd, a+bcd, abc+d."""
ENCODING = Encoding(
    PATTERN,
    {bytes([byte]): byte for byte in range(256)} | {word: 256 + index for index, word in enumerate(WORDS)},
    {"<begin>": 256 + len(WORDS), "<pad>": 257 + len(WORDS)},
)


def pickled(encoding: Encoding) -> bytes:
    return pickle.dumps(
        tiktoken.Encoding(
            "small", pat_str=encoding.pattern, mergeable_ranks=encoding.ranks, special_tokens=encoding.special
        )
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(ENCODING, begin="<begin>"))


def test_the_pickle_is_read() -> None:
    assert read_encoding(pickled(ENCODING)) == ENCODING


class Opens:
    """Unpickling an instance would open a file for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_calls_something_is_refused_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"names _?io\.open; only tiktoken"):
        read_encoding(pickle.dumps(Opens(tmp_path / "written")))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04garbage", pickle.dumps({"pat_str": "x"}), pickle.dumps(None)]
)
def test_what_is_no_encoding_is_refused(data: bytes) -> None:
    with pytest.raises(ConversionError):
        read_encoding(data)


def test_bytes_are_spelt_as_the_library_spells_them() -> None:
    alphabet = byte_characters()
    assert len(set(alphabet.values())) == 256
    assert set(alphabet.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert (alphabet[ord("a")], alphabet[ord(" ")], alphabet[ord("\n")]) == ("a", "Ġ", "Ċ")


def test_merges_come_in_the_order_of_what_they_make() -> None:
    found = merges(ENCODING.ranks)
    ranks = [ENCODING.ranks[left + right] for left, right in found]
    assert ranks == sorted(ranks)
    assert {pair for pair in found if b"".join(pair) == b"abc"} == {(b"a", b"bc"), (b"ab", b"c")}


def test_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<pad><begin>").ids
    assert ids[0] == ENCODING.special["<begin>"]
    assert not set(ENCODING.special.values()) & set(ids[1:])


@given(st.lists(st.one_of(st.text("abcd é日\n<pad>0'", max_size=12), st.text(max_size=12)), max_size=5))
def test_ids_are_those_of_tiktoken(tokenizer: Tokenizer, parts: list[str]) -> None:
    assert differing(tokenizer, ENCODING, ["".join(parts), *parts], begin="<begin>") == 0


def test_the_comparison_can_fail(tokenizer: Tokenizer) -> None:
    other = Encoding(PATTERN, ENCODING.ranks | {b"abcd": 256, b"ab": 260}, ENCODING.special)
    assert differing(tokenizer, other, ["ab", "zz"], begin="<begin>") == 1
