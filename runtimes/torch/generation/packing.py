"""The tokens of a step one after another: which belong to which sequence, and which decode together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from headrace.runtimes.generation.base import Chunk

_PADDING: Final = 128
"""Padded tokens that cost as much as one more call of the attention, measured on the CPU."""


@dataclass(frozen=True, slots=True)
class Span:
    """The packed tokens ``first`` to ``last`` (exclusive), of one chunk.

    The sequence's KV is in ``row`` of the cache; it has ``start`` tokens before the step, ``end`` after it.
    """

    first: int
    last: int
    row: int
    start: int

    @property
    def end(self) -> int:
        """Tokens of the sequence after the step."""
        return self.start + self.last - self.first


@dataclass(frozen=True, slots=True)
class Group:
    """Chunks of one token in neighbouring rows of the cache, computed together.

    They are the packed tokens ``first`` to ``last`` and the rows from ``row`` on; ``ends`` are the tokens
    that each sequence has after the step.
    """

    first: int
    last: int
    row: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """The chunks of a step, one after another.

    Chunks of one token come first, in the order of their rows.

    Attributes:
        spans: every chunk, in the order of the packed tokens.
        groups: the chunks of one token.
        long: the other chunks.
        tokens: ids, int64 [tokens].
        positions: in their own sequences, int64 [tokens].
        rows: indices of the tokens whose logits are wanted, in the order of the step's chunks, int64.
    """

    spans: Sequence[Span]
    groups: Sequence[Group]
    long: Sequence[Span]
    tokens: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor


def pack(chunks: Sequence[Chunk], cache_rows: Sequence[int]) -> Packed:
    """Lay out the chunks of a step, whose sequences are in ``cache_rows`` of the cache."""
    order = sorted(
        range(len(chunks)), key=lambda number: (len(chunks[number].tokens) > 1, cache_rows[number])
    )
    tokens: list[int] = []
    positions: list[int] = []
    spans: dict[int, Span] = {}
    for number in order:
        chunk = chunks[number]
        first = len(tokens)
        tokens.extend(chunk.tokens)
        positions.extend(range(chunk.start, chunk.start + len(chunk.tokens)))
        spans[number] = Span(first, len(tokens), cache_rows[number], chunk.start)
    rows = [
        row
        for number, chunk in enumerate(chunks)
        for row in range(spans[number].last - chunk.logits, spans[number].last)
    ]
    ordered = list(spans.values())
    single = [span for span in ordered if span.last - span.first == 1]
    return Packed(
        spans=ordered,
        groups=_groups(single),
        long=ordered[len(single) :],
        tokens=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        rows=torch.tensor(rows, dtype=torch.int64),
    )


def _groups(spans: Sequence[Span]) -> list[Group]:
    """Join neighbours while padding them to one length costs less than another call."""
    groups: list[Group] = []
    for span in spans:
        if groups:
            last = groups[-1]
            longest = max(*last.ends, span.end)
            padding = longest * (len(last.ends) + 1) - max(last.ends) * len(last.ends) - span.end
            if span.row == last.row + len(last.ends) and padding <= _PADDING:
                groups[-1] = Group(last.first, span.last, last.row, (*last.ends, span.end))
                continue
        groups.append(Group(span.first, span.last, span.row, (span.end,)))
    return groups
