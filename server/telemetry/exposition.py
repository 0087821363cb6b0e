"""Plain numbers to what the Prometheus library takes, and to text where its names would differ.

The library ends the name of every counter in ``_total``; other servers' names do not, so theirs are written
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.server.telemetry.histogram import Histogram


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Turn counts per bucket into Prometheus' cumulative ones."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def numbers(kind: str, name: str, text: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Write a family of counters or gauges.

    Args:
        kind: ``counter`` or ``gauge``.
        name: as it stands in the text.
        text: of its HELP line.
        samples: (what :func:`labels` returned, value) of each.
    """
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for given, value in samples:
        yield f"{name}{{{given}}} {value}\n"


def histograms(name: str, text: str, samples: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    """Write a family of histograms; ``samples`` as for :func:`numbers`."""
    yield f"# HELP {name} {text}\n# TYPE {name} histogram\n"
    for given, histogram in samples:
        before = f'{name}_bucket{{{given},le="'
        buckets = cumulative(histogram)
        for bound, count in buckets:
            yield f'{before}{bound}"}} {count}\n'
        yield f"{name}_sum{{{given}}} {histogram.total}\n{name}_count{{{given}}} {buckets[-1][1]}\n"


def labels(values: Mapping[str, str]) -> str:
    """Write label names and values as they stand between the braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
