"""Which of the waiting parts make the next batch.

Tensors: parts of the oldest part's key, in order of arrival, up to the row limit. Texts: a window of like
lengths around the oldest part, because on a CPU padding is the first waste (a batch padded to its longest
text costs several times the work). The oldest part is always in it, so nothing starves, and only the older
part of the queue may join, so that few overtake: with 32 callers the slowest hundredth waits a fifth less
than if all might, for a hundredth of the throughput.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part

WINDOW: Final = 512
"""Waiting parts that are looked at for one batch; bounds the cost of forming it."""

JOINING: Final = 12
"""The oldest texts that may join a batch, or a third of those that wait where that is more."""

MAX_STRETCH: Final = 1.3
"""Longest to shortest text of a batch at most; beyond it padding costs more than a further batch does."""


class Selection(NamedTuple):
    """The parts for one batch and why it closes; ``complete`` when waiting longer could not improve it."""

    parts: list[Part]
    reason: str
    complete: bool


def select(waiting: Iterable[Part], policy: BatchingPolicy, share: int) -> Selection | None:
    """Choose the next batch from ``waiting`` (most urgent and oldest first).

    Args:
        waiting: the queue in order.
        policy: the model's limits.
        share: parts this batch should take at most so that other idle instances get some too.

    Returns:
        None when nothing waits.
    """
    window = [part for part in islice(waiting, WINDOW) if not part.abandoned]
    if not window:
        return None
    first = window[0]
    if not policy.join:
        return Selection([first], "full", complete=True)
    alike = [part for part in window if part.key == first.key]
    if policy.max_tokens and first.tokens:
        older = alike[: max(JOINING, -(-len(alike) // 3))]
        return _texts(older, first, policy, min(policy.max_rows, max(1, share)))
    return _rows(alike, policy, share, mixed=len(alike) < len(window))


def _rows(alike: list[Part], policy: BatchingPolicy, share: int, *, mixed: bool) -> Selection:
    """Take parts in order of arrival up to the row limit, cut to a preferred size where one is reached."""
    share = len(alike) if policy.preferred or policy.delay_us else max(1, share)
    chosen: list[Part] = []
    rows = 0
    full = False
    for part in alike[:share]:
        if chosen and rows + part.rows > policy.max_rows:
            full = True
            break
        chosen.append(part)
        rows += part.rows
    if full or rows >= policy.max_rows:
        return Selection(chosen, "full", complete=True)
    preferred = max((size for size in policy.preferred if size <= rows), default=0)
    if preferred:
        kept: list[Part] = []
        total = 0
        for part in chosen:
            if total + part.rows > preferred and kept:
                break
            kept.append(part)
            total += part.rows
        return Selection(kept, "preferred", complete=True)
    return Selection(chosen, "shape" if mixed else "idle", complete=False)


def _texts(alike: list[Part], first: Part, policy: BatchingPolicy, limit: int) -> Selection:
    """Grow a window around the oldest text in order of length, always by the nearer neighbour."""
    ordered = sorted(alike, key=_length)
    low = high = ordered.index(first)
    closed = False
    while high - low + 1 < limit:
        shorter = first.tokens - ordered[low - 1].tokens if low > 0 else None
        longer = ordered[high + 1].tokens - first.tokens if high + 1 < len(ordered) else None
        if shorter is None and longer is None:
            break
        down = longer is None or (shorter is not None and shorter <= longer)
        new_low, new_high = (low - 1, high) if down else (low, high + 1)
        shortest, longest = ordered[new_low].tokens, ordered[new_high].tokens
        if longest * (new_high - new_low + 1) > policy.max_tokens:
            closed = True
            break
        if longest > shortest * MAX_STRETCH + 8:  # 8 tokens: short queries differ by words, not by work
            break
        low, high = new_low, new_high
    full = closed or high - low + 1 >= policy.max_rows
    chosen = ordered[low : high + 1]
    mixed = len(chosen) < len(ordered)
    return Selection(chosen, "full" if full else "shape" if mixed else "idle", complete=full)


def _length(part: Part) -> int:
    return part.tokens
