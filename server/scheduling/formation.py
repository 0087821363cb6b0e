"""Which of the waiting parts make the next batch.

Tensors: parts of the oldest part's key, in order of arrival, up to the row limit. Texts in order of arrival
as well where padding costs nothing; else, of those in order of length, the neighbours that are cheapest to
run together (``lengths``), because on a CPU padding is the first waste. The oldest part is always in the
batch, so nothing starves, and only the older part of the queue may join, so that few overtake: with 32
callers the slowest hundredth waits a fifth less than if all might, for a hundredth of the throughput. Where
all of the older part joined, nobody is overtaken by those behind it, and they may too.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice
from typing import Final, NamedTuple

from headrace.server.scheduling.lengths import cheapest_batch
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Alone, Part

WINDOW: Final = 512
"""Waiting parts that are looked at for one batch; bounds the cost of forming it."""

JOINING: Final = 12
"""The oldest texts that may join a batch, or a third of those that wait where that is more."""


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
        selection = _older_texts(alike, first, policy, min(policy.max_rows, max(1, share)))
    else:
        selection = _rows(alike, policy, share, mixed=len(alike) < len(window))
    return selection._replace(complete=True) if isinstance(first.key, Alone) else selection


def _older_texts(alike: list[Part], first: Part, policy: BatchingPolicy, limit: int) -> Selection:
    """Take texts among the oldest, up to ``limit``."""
    if policy.padding == "none":
        return _in_order(alike[:limit], policy)
    joining = max(JOINING, -(-len(alike) // 3))
    selection = _texts(alike[:joining], first, policy, limit)
    while len(selection.parts) == joining < min(len(alike), limit):
        joining += JOINING
        selection = _texts(alike[:joining], first, policy, limit)
    # who comes now is behind those that may join
    settled = len(selection.parts) < joining <= len(alike)
    return selection._replace(complete=selection.complete or settled)


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
    """Divide the texts into batches that together take the least, and return the one of the oldest."""
    ordered = sorted(alike, key=_length)
    at = ordered.index(first)
    low, high = cheapest_batch([part.tokens for part in ordered], at, policy, limit)
    chosen = ordered[low:high]
    # by one more of the shortest, which is the least that could come
    tokens = chosen[-1].tokens * (len(chosen) + 1)
    if policy.padding != "all":
        tokens = sum(map(_length, chosen)) + chosen[0].tokens
    full = len(chosen) >= policy.max_rows or tokens > policy.max_tokens
    mixed = len(chosen) < len(ordered)
    return Selection(chosen, "full" if full else "shape" if mixed else "idle", complete=full)


def _in_order(parts: list[Part], policy: BatchingPolicy) -> Selection:
    """Take texts in order of arrival up to the limit of tokens; the first is taken whatever its length."""
    totals = accumulate(map(_length, parts))
    count = max(1, sum(total <= policy.max_tokens for total in totals))
    full = count < len(parts) or count >= policy.max_rows
    return Selection(parts[:count], "full" if full else "idle", complete=full)


def _length(part: Part) -> int:
    return part.tokens
