"""The tables of generation scenarios."""

from __future__ import annotations

from typing import Final

from benchmarks.generation.peers.registry import FLOOR, RAW
from benchmarks.generation.results import GenerationPoint, GenerationResult
from benchmarks.table import Section, number

_COLUMNS: Final = (
    ("tokens/s", "rate", 1),
    ("decode /s", "decode_rate", 1),
    ("÷ raw", f"of {RAW}", 2),
    ("÷ genai", "of onnxruntime-genai", 2),
    ("÷ vllm", "of vllm", 2),
    ("÷ unary", "of unary", 2),
    ("÷ generate", "of transformers-generate", 2),
    ("÷ q4_1", "of llama-q4_1", 2),
    ("decode ÷floor", f"decode_of {FLOOR}", 2),
    ("TTFT ms", "ttft_ms", 0),
    ("TTFT ÷raw", f"ttft_of {RAW}", 2),
    ("TTFT new", "cold_ttft_ms", 0),
    ("new ÷known", "prefix_speedup", 2),
    ("ITL p50", "itl_p50_ms", 1),
    ("ITL p99", "itl_p99_ms", 1),
    ("CPU all", "cpu_total", 1),
    ("CPU server", "cpu server", 2),
    ("CPU envoy", "cpu envoy", 2),
    ("same tokens", "agreement", 2),
    ("free ÷all", "free_of_all", 2),
    ("freed ms", "freed_ms", 0),
    ("next ÷before", "next_of_before", 2),
    ("not taken", "refused", 0),
    ("MiB before", "rss_before", 0),
    ("MiB first", "rss_first", 0),
    ("MiB last", "rss_last", 0),
    ("last ÷first", "memory_growth", 2),
    ("load", "load", 1),
)
"""(head, metric, digits). Columns that nobody has are left out."""

_ONLY_WITHOUT: Final = {
    "of vllm": f"of {RAW}",
    "of transformers-generate": f"of {RAW}",
    **dict.fromkeys(
        ("decode_rate", "itl_p50_ms", "itl_p99_ms", "cpu_total", "cpu server", "cpu envoy"), "free_of_all"
    ),
}
"""Columns that another one makes less interesting; the JSON has every ratio."""


def section(result: GenerationResult) -> Section:
    """Lay a scenario out."""
    medians = {(point.contender, point.streams): point.medians() for point in result.points}
    known = {name for each in medians.values() for name, value in each.items() if value is not None}
    shown = [
        column for column in _COLUMNS if column[1] in known and _ONLY_WITHOUT.get(column[1]) not in known
    ]
    rows = [
        [
            point.contender,
            f"{point.streams}{' *' if point.disturbed else ''}",
            *(
                number(medians[point.contender, point.streams].get(metric), digits)
                for _, metric, digits in shown
            ),
            str(point.failed),
        ]
        for point in sorted(result.points, key=lambda point: point.streams)
    ]
    head = ["contender", "streams", *(head for head, _, _ in shown), "failed"]
    errors = [
        f"{point.contender}, {point.streams} streams: {error}"
        for point in result.points
        for error in _first_error(point)
    ]
    return Section(result.name, result.title, head, rows, _notes(result), errors)


def _first_error(point: GenerationPoint) -> list[str]:
    return next((reading.errors[:1] for reading in point.rounds if reading.errors), [])


def _notes(result: GenerationResult) -> list[str]:
    lines = [result.method]
    lines += [f"{name}: {title}" for name, title in result.titles.items()]
    lines += [f"{name} was skipped: {reason}" for name, reason in result.skipped.items()]
    lines.append(
        "TTFT: time to the first token, median; ITL: time between tokens, ms; CPU: seconds per 1,000 output "
        "tokens; same tokens: share equal to the bare loop's up to the first that differs; load: load average"
    )
    if any(point.disturbed for point in result.points):
        lines.append("*: something else kept over 5 % of a core busy")
    return lines
