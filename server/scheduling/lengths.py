"""Which texts are cheapest to run together: a batch is padded to its longest text."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.server.scheduling.policy import BatchingPolicy


def cheapest_batch(lengths: Sequence[int], at: int, policy: BatchingPolicy, limit: int) -> tuple[int, int]:
    """Divide texts into batches whose costs add up to the least, and return the batch of the text ``at``.

    A batch costs its padded tokens and ``policy.overhead_tokens``. The best divisions of the first texts, of
    more and more of them, are found one from another. A batch has at most ``limit`` texts and
    ``policy.max_tokens`` padded tokens; a text of more is alone.

    Args:
        lengths: tokens of each text, ascending.
        at: index of one of them.
        policy: of the model.
        limit: texts in a batch, at least 1.

    Returns:
        The first index of the batch and that behind its last.
    """
    overhead, budget = policy.overhead_tokens, policy.max_tokens
    costs = [0]
    starts = [0]
    for end, longest in enumerate(lengths, 1):
        # alone first: whatever its length, that may always be
        least, start = costs[end - 1] + longest, end - 1
        most = max(1, min(limit, end, budget // longest if longest else limit))
        for count in range(2, most + 1):
            first = end - count
            # the shortest is padded by more than a batch of its own costs, and shorter ones by still more
            if longest - lengths[first] > overhead:
                break
            cost = costs[first] + longest * count
            if cost < least:
                least, start = cost, first
        costs.append(least + overhead)
        starts.append(start)
    end = len(lengths)
    while starts[end] > at:
        end = starts[end]
    return starts[end], end
