"""Which texts are cheapest to run together: a batch pays for padding to its longest text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from headrace.server.scheduling.policy import BatchingPolicy

SCORES: Final = 1000
"""Pairs of positions that attention scores in the time that everything else takes for a token: a row of 100
has 10,000 of them. Measured with MiniLM on a CPU; more for wider models, whose tokens cost more."""


def cheapest_batch(lengths: Sequence[int], at: int, policy: BatchingPolicy, limit: int) -> tuple[int, int]:
    """Divide texts into batches whose costs add up to the least, and return the batch of the text ``at``.

    A batch costs ``policy.overhead_tokens`` and its tokens: padded ones where ``policy.padding`` is ``all``;
    else its own, and attention over padded rows. The best divisions of the first texts, of more and more of
    them, are found one from another. A batch has at most ``limit`` texts and ``policy.max_tokens`` of the
    tokens that count; a text of more is alone.

    Args:
        lengths: tokens of each text, ascending.
        at: index of one of them.
        policy: of the model.
        limit: texts in a batch, at least 1.

    Returns:
        The first index of the batch and that behind its last.
    """
    overhead, budget = policy.overhead_tokens, policy.max_tokens
    padded = policy.padding == "all"
    totals = [0, *accumulate(lengths)]
    costs = [0]
    starts = [0]
    for end, longest in enumerate(lengths, 1):
        square = 0 if padded else longest * longest
        # alone first: whatever its length, that may always be
        least, start = costs[end - 1] + longest + square // SCORES, end - 1
        for count in range(2, min(limit, end) + 1):
            first = end - count
            tokens = longest * count if padded else totals[end] - totals[first]
            shortest = lengths[first]
            waste = longest - shortest if padded else (square - shortest * shortest) // SCORES
            # the shortest is padded by more than a batch of its own costs, and shorter ones by still more
            if tokens > budget or waste > overhead + 1:
                break
            cost = costs[first] + tokens + square * count // SCORES
            if cost < least:
                least, start = cost, first
        costs.append(least + overhead)
        starts.append(start)
    end = len(lengths)
    while starts[end] > at:
        end = starts[end]
    return starts[end], end
