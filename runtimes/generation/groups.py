"""Which chunks of a step take one run of a decoder that does not compute all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.runtimes.generation.base import Chunk, Together

GROUP_TOKENS: Final = 256
"""Tokens of sequences that begin in one run, padding included. More gains little, and all of a run wait for
it: SmolLM2 computes prompts of 128 tokens 8 % faster by twos and 10 % by eights, those of 32 28 %."""

PADDING: Final = 16
"""Padding may be this part of a group's own tokens."""


def groups(chunks: Sequence[Chunk], together: Together) -> list[list[int]]:
    """Divide chunks into those that are computed at once; every index of ``chunks`` is in one list.

    All single tokens are one group, the first. Sequences that begin are grouped by like lengths, for they
    need no past. Every other chunk is alone: the operator for attention takes many tokens behind a past for
    one sequence only. Groups are in the order of their first chunks. With ``mixed`` the single tokens are
    part of the first of the other groups.
    """
    if together == "all":
        return [list(range(len(chunks)))] if chunks else []
    single = [index for index, chunk in enumerate(chunks) if len(chunk.tokens) == 1]
    longer = _longer(chunks) if len(single) < len(chunks) else []
    if not single:
        return longer
    if together == "mixed" and longer:
        return [sorted(single + longer[0]), *longer[1:]]
    return [single, *longer]


def _longer(chunks: Sequence[Chunk]) -> list[list[int]]:
    beginning: list[int] = []
    longer: list[list[int]] = []
    for index, chunk in enumerate(chunks):
        if len(chunk.tokens) == 1:
            continue
        if chunk.fresh and not chunk.start:
            beginning.append(index)
        else:
            longer.append([index])
    group: list[int] = []
    tokens = 0
    for index in sorted(beginning, key=lambda index: len(chunks[index].tokens)):
        length = len(chunks[index].tokens)
        tokens += length
        if group and length * (len(group) + 1) > min(GROUP_TOKENS, tokens + tokens // PADDING):
            longer.append(group)
            group, tokens = [], length
        group.append(index)
    if group:
        longer.append(group)
    longer.sort(key=min)
    return longer
