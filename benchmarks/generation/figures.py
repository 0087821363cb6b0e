"""Arithmetic on traces: rates, time to the first token, time between tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from benchmarks.estimates import percentile
from benchmarks.generation.work import Trace, Work


@dataclass(frozen=True, slots=True)
class Figures:
    """What a trace says.

    Attributes:
        tokens: that came.
        rate: of them a second, from the first request to the last token (``mixed``: in the steady part).
        decode_rate: tokens a second after every sequence had its first; NaN for work without such a part.
        ttft_ms: median time from request to first token.
        itl_p50_ms: median time between two tokens of a sequence.
        itl_p99_ms: 99th percentile of it.
        missing: tokens that were asked for and did not come.
    """

    tokens: int
    rate: float
    decode_rate: float
    ttft_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    missing: int


def figures(work: Work, trace: Trace) -> Figures:
    """Evaluate a trace of ``work``."""
    tokens = sum(map(len, trace.times))
    first = [(times[0] - sent) * 1000.0 for times, sent in zip(trace.times, trace.sent, strict=True) if times]
    between = np.asarray([(b - a) * 1000.0 for times in trace.times for a, b in pairwise(times)])
    staggered = work.callers < len(work.prompts)
    return Figures(
        tokens,
        steady_rate(work, trace) if staggered else total_rate(trace),
        float("nan") if staggered else decode_rate(trace),
        median(first) if first else float("nan"),
        percentile(between, 0.50),
        percentile(between, 0.99),
        sum(work.new_tokens) - tokens,
    )


def total_rate(trace: Trace) -> float:
    """Return tokens a second from the beginning to the last token."""
    moments = [moment for times in trace.times for moment in times]
    return len(moments) / (max(moments) - trace.begin) if moments else float("nan")


def decode_rate(trace: Trace) -> float:
    """Return the tokens after the last sequence got its first one ÷ the time that they took."""
    if not all(trace.times):
        return float("nan")
    begin = max(times[0] for times in trace.times)
    later = [moment for times in trace.times for moment in times if moment > begin]
    return len(later) / (max(later) - begin) if later else float("nan")


def steady_rate(work: Work, trace: Trace) -> float:
    """Return tokens a second while all callers had a request under way.

    That is from the moment at which the last caller began until the last request was sent. Then callers
    run out of requests one by one, and what the machine could do is not asked for any more.
    """
    begin = trace.begin + (work.gaps[-1] if work.gaps else 0.0)
    end = max(trace.sent)
    inside = sum(begin < moment <= end for times in trace.times for moment in times)
    return inside / (end - begin) if end > begin else float("nan")


def agreement(ours: Trace, theirs: Trace) -> float | None:
    """Return the share of tokens before the first that differs, over all requests; None without ids.

    Contenders that round differently part sooner or later; other weights or prompts part at once.
    """
    pairs = list(zip(ours.tokens, theirs.tokens, strict=True))
    if not all(a and b for a, b in pairs):
        return None
    same = total = 0
    for a, b in pairs:
        total += min(len(a), len(b))
        for left, right in zip(a, b, strict=False):
            if left != right:
                break
            same += 1
    return same / total
