"""Compares a converted tokenizer with tiktoken itself, id for id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from headrace.runtimes.convert.tiktoken_bpe import Encoding

SAMPLES: Final = 500
LONGEST: Final = 60
ALPHABETS: Final = (
    "abcdefgh XYZ  0123456789 's 'll ?!.,;:()-_/\\",
    " \t\r\n\u00a0\u3000a1.",
    "日本語の文字列 中文測試 한국어 텍스트",
    "😀👩‍👩‍👧🇫🇷❤️🏳️‍🌈👍🏽 ok",
    "éàüñçßŞİı ЖдёЩ αβγ العربية עברית हिन्दी",
    "<|reserved_1|> <s>[INST]{}$#@&*",
)


def sample_texts() -> list[str]:
    """Seeded texts of many scripts, white space, emoji and what looks like control tokens."""
    generator = np.random.default_rng(0)
    alphabets = [list(alphabet) for alphabet in (*ALPHABETS, "".join(ALPHABETS))]
    return [
        "".join(generator.choice(alphabets[index % len(alphabets)], generator.integers(0, LONGEST)))
        for index in range(SAMPLES)
    ]


def differing(tokenizer: Tokenizer, encoding: Encoding, texts: Sequence[str], *, begin: str) -> int:
    """How many texts get other ids than from tiktoken with the special token ``begin`` in front."""
    reference = tiktoken.Encoding(
        "reference", pat_str=encoding.pattern, mergeable_ranks=encoding.ranks, special_tokens=encoding.special
    )
    first = [encoding.special[begin]]
    return sum(tokenizer.encode(text).ids != first + reference.encode_ordinary(text) for text in texts)
