"""Failed requests by what other servers call their causes, read off the counts of RPCs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

from headrace.server.errors import CancelledError

if TYPE_CHECKING:
    from headrace.server.errors import HeadraceError
    from headrace.server.telemetry.requests import RequestLabels, Series

ASIDE: Final = frozenset(
    {
        "Abort", "ChatTokenize", "Decode", "DecodeStream", "Detokenize", "Info", "ModelConfig",
        "ModelMetadata", "ModelReady", "ModelStatistics", "Tokenize", "TokenizeStream", "TokenizerInfo",
    }
)  # fmt: skip
"""RPCs that name a model and do not run it."""

Failures = dict[tuple[str, str], dict[str, int]]
"""(model, version), both "" where the request reached none → cause → count."""


def failures(
    series: Mapping[RequestLabels, Series],
    tasks: Collection[str],
    protocols: Collection[str],
    cause: Callable[[type[HeadraceError]], str],
) -> Failures:
    """Sum the failed RPCs that ran a model, or were to.

    Args:
        series: all counts of RPCs.
        tasks: what the models do.
        protocols: families whose RPCs count where they reached no model.
        cause: names the cause of an error, "" for what is not counted; callers that left are CancelledError.
    """
    found: Failures = {}
    for labels, counts in series.items():
        wanted = labels.task in tasks if labels.task else labels.protocol in protocols
        if not wanted or labels.method in ASIDE:
            continue
        sums = found.setdefault((labels.model, labels.version), {})
        errors = {**counts.errors, CancelledError: counts.codes.get("CANCELLED", 0)}
        for error, count in errors.items():
            name = cause(error)
            if name and count:
                sums[name] = sums.get(name, 0) + count
    return found
