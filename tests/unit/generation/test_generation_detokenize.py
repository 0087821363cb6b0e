"""Incremental text equals the text of all tokens together, and never has half a character."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_generation import token_id
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from headrace.server.tasks.detokenize import REPLACEMENT, detokenizer
from headrace.server.tasks.vocabulary import Form, Vocabulary

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello, world! It's 12:30.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "你好、世界。東京は日本の首都です。",
    "family 👩‍👩‍👧 flag 🇩🇪 thumbs 👍🏽",
    'def f(x):\n    return {"a": [1, 2]}\n',
]
FAMILY = "👩‍👩‍👧‍👦"


def trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool_call>", "plain added"])
    return tokenizer


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@cache
def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral; without ``strip`` as Gemma."""
    seed = Tokenizer(models.BPE(unk_token="<unk>"))
    seed.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    seed.train_from_iterator(CORPUS[:2], trainer)
    pieces = list(seed.get_vocab(with_added_tokens=False))
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *sorted(pieces)]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), tokenizer.normalizer])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback-gemma": lambda: byte_fallback(strip=False),
    "metaspace": metaspace,
}


@cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(TOKENIZERS[name]())


def deltas(
    known: Vocabulary, ids: Sequence[int], prompt: Sequence[int] = (), *, skip: bool = True
) -> list[str]:
    stream = detokenizer(known, prompt, skip_special_tokens=skip)
    return [*map(stream.feed, ids), stream.flush()]


texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from([*CORPUS, FAMILY, "日本語 テスト", " leading", "a  b", "<s>x</s> y"]),
)


def test_the_forms_are_recognised() -> None:
    forms = {name: vocabulary(name).decoder for name in TOKENIZERS}
    assert forms["byte-level"].form is Form.BYTES
    assert forms["byte-fallback"] == (Form.PIECES, True, True)
    assert forms["byte-fallback-gemma"] == (Form.PIECES, False, True)
    assert forms["metaspace"].form is Form.WINDOW


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts, skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_text_comes_back(name: str, text: str, *, skip: bool) -> None:
    known = vocabulary(name)
    ids = known.tokenizer.encode(text).ids
    pieces = deltas(known, ids, skip=skip)
    assert "".join(pieces) == known.tokenizer.decode(ids, skip_special_tokens=skip)
    if REPLACEMENT not in text and "<unk>" not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_tokens_give_the_text_of_the_library(name: str, data: st.DataObject, *, skip: bool) -> None:
    known = vocabulary(name)
    size = known.tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 5), max_size=24))  # some ids have no token
    expected = known.tokenizer.decode(ids, skip_special_tokens=skip)
    found = "".join(deltas(known, ids, skip=skip))
    if known.decoder.form is Form.PIECES and REPLACEMENT in expected:
        # Valid characters before invalid bytes are out already; the library takes them back.
        special = known.special if skip else frozenset[int]()
        pieces = [known.piece(token) for token in ids if token not in special]
        pattern = "".join(".?" if isinstance(piece, int) else re.escape(piece) for piece in pieces)
        start = " " if known.decoder.strip and isinstance(pieces[0], str) and pieces[0][:1] == " " else ""
        assert REPLACEMENT in found
        assert re.fullmatch(pattern, start + found, re.DOTALL)
    else:
        assert found == expected


@pytest.mark.parametrize("name", ["byte-fallback", "byte-fallback-gemma"])
def test_an_id_without_a_token_does_not_part_a_character(name: str) -> None:
    known = vocabulary(name)
    vocabulary_ids = known.tokenizer.get_vocab()
    first, second = (vocabulary_ids[f"<0x{byte:02X}>"] for byte in "é".encode())
    none = known.tokenizer.get_vocab_size() + 1
    assert "".join(deltas(known, [first, none, second])) == "é"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(before=st.sampled_from(["The", "Hello, wor", "東京", "x 👍🏽"]), after=st.sampled_from(CORPUS))
@settings(max_examples=20, deadline=None)
def test_a_continuation_is_what_it_adds_to_the_prompt(name: str, before: str, after: str) -> None:
    known = vocabulary(name)
    decode = known.tokenizer.decode
    prompt = known.tokenizer.encode(before).ids
    # The space of a second word stays, though a text of its own would begin without it.
    ids = known.tokenizer.encode(after).ids
    assert decode(prompt) + "".join(deltas(known, ids, prompt)) == decode(prompt + ids)


def test_a_prompt_of_special_tokens_only_is_no_text() -> None:
    known = vocabulary("byte-fallback")
    start = token_id(known.tokenizer, "<s>")
    ids = known.tokenizer.encode("The fox").ids
    assert "".join(deltas(known, ids, [start])) == "The fox"
    assert "".join(deltas(known, ids, [start], skip=False)) == " The fox"


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback"])
def test_characters_of_several_tokens_come_whole(name: str) -> None:
    known = vocabulary(name)
    ids = known.tokenizer.encode(FAMILY).ids
    assert len(ids) > len(FAMILY) if name == "byte-fallback" else len(ids) > 1
    pieces = [piece for piece in deltas(known, ids) if piece]
    assert "".join(pieces) == FAMILY
    assert len(pieces) > 1  # as soon as they are complete, not at the end


def test_a_cut_character_becomes_one_replacement_for_each_byte() -> None:
    known = vocabulary("byte-fallback")
    ids = [token_id(known.tokenizer, token) for token in ("<0xE4>", "<0xBD>")]
    assert deltas(known, ids) == ["", "", REPLACEMENT * 2]
    assert known.tokenizer.decode(ids) == REPLACEMENT * 2


def test_a_stream_of_incomplete_looking_text_is_not_held_for_ever() -> None:
    known = vocabulary("metaspace")
    odd = Tokenizer(models.WordLevel({REPLACEMENT: 0, "b": 1}, unk_token="b"))
    held = Vocabulary(odd)
    assert held.decoder.form is Form.WINDOW
    pieces = deltas(held, [0] * 40)
    assert max(map(len, pieces)) < 40
    assert "".join(pieces) == odd.decode([0] * 40)
    assert known is not held


def test_what_single_tokens_are() -> None:
    known = vocabulary("byte-level")
    ids = known.tokenizer.encode(" 世").ids
    assert b"".join(known.text(token).raw for token in ids) == " 世".encode()
    end = token_id(known.tokenizer, "<|im_end|>")
    assert known.detail(end).special
    assert known.text(end) == ("<|im_end|>", b"<|im_end|>")
    added = token_id(known.tokenizer, "plain added")
    assert known.text(added) == ("plain added", b"plain added")
    assert not known.detail(added).special

    pieces = vocabulary("byte-fallback")
    space = token_id(pieces.tokenizer, "▁")
    assert pieces.text(space) == (" ", b" ")
    assert pieces.text(token_id(pieces.tokenizer, "<0xE4>")) == (REPLACEMENT, b"\xe4")
    assert pieces.text(token_id(pieces.tokenizer, "<0x0A>")) == ("\n", b"\n")

    joined = vocabulary("metaspace")
    word = next(token for token in joined.tokenizer.get_vocab() if token.startswith("▁") and len(token) > 1)
    text = word.replace("▁", " ")
    assert joined.text(token_id(joined.tokenizer, word)) == (text, text.encode())
    assert joined.text(10**6) == ("", b"")


def test_real_tokenizers_agree_with_the_library(demo_repository: Path) -> None:
    files = sorted(demo_repository.glob("*/*/tokenizer.json"))
    assert files
    for file in files:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        known = Vocabulary(tokenizer)
        for text in [*CORPUS, FAMILY, "日本語 テスト"]:
            ids = tokenizer.encode(text).ids
            for skip in (True, False):
                assert "".join(deltas(known, ids, skip=skip)) == tokenizer.decode(
                    ids, skip_special_tokens=skip
                )
