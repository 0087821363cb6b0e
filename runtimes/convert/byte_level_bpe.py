"""The parts of a tokenizer.json that all byte-level BPE tokenisers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    """Return the step that spells bytes as characters, or back; ``use_regex`` splits as GPT-2 does."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def tokenizer_document(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str] | str],
    *,
    pre_tokenizers: Sequence[Mapping[str, Any]],
    decoder: Mapping[str, Any],
    added_tokens: Sequence[Mapping[str, Any]] = (),
    post_processor: Mapping[str, Any] | None = None,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Return the document of a BPE tokeniser that neither normalises nor has an unknown token.

    Args:
        vocabulary: token → id, special tokens too.
        merges: pairs of tokens in the order in which they are joined.
        pre_tokenizers: steps that split a text into pieces.
        decoder: the step that makes a text of tokens.
        added_tokens: what is found in a text before it is split.
        post_processor: what puts special tokens around a text.
        ignore_merges: whether a piece that is a token stays whole.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizers)},
        "post_processor": post_processor,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
