"""The seeded mix of texts: short queries and long passages, as a search service sees them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

BLOCK: Final = 32
"""Texts of one block; every block has the same share of queries and passages."""

QUERIES: Final = 22
QUERY_TOKENS: Final = (5, 15)
PASSAGE_TOKENS: Final = (60, 250)
SPECIAL_TOKENS: Final = 2
"""Tokens that a BERT tokenizer adds to a text; lengths count them."""


def lengths(blocks: int, seed: int) -> list[int]:
    """Draw the token counts of ``blocks`` blocks of 32 texts: 22 queries and 10 passages each, shuffled."""
    source = random.Random(seed)  # noqa: S311 - the same texts every time is the point
    drawn: list[int] = []
    for _ in range(blocks):
        block = [source.randint(*QUERY_TOKENS) for _ in range(QUERIES)]
        block += [source.randint(*PASSAGE_TOKENS) for _ in range(BLOCK - QUERIES)]
        source.shuffle(block)
        drawn += block
    return drawn


def queries(count: int, seed: int) -> list[int]:
    """Draw the token counts of ``count`` short queries, without any passage."""
    source = random.Random(seed)  # noqa: S311
    return [source.randint(*QUERY_TOKENS) for _ in range(count)]


def texts(counts: Sequence[int], words: Sequence[str], seed: int) -> list[str]:
    """Write a text of each token count out of ``words``, each of which is one token."""
    source = random.Random(seed)  # noqa: S311
    return [" ".join(source.choices(words, k=count - SPECIAL_TOKENS)) for count in counts]


def spread(count: int) -> list[int]:
    """Order 0..count-1 so that every prefix is an even sample: multiples of the golden ratio, modulo 1.

    A loop that is cut off by the clock has then worked on a fair share of short and long batches.
    """
    golden = 0.6180339887498949
    return sorted(range(count), key=lambda index: (0.5 + index * golden) % 1.0)
