"""Response headers of REST facades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.text_models import Timings

Headers = tuple[tuple[str, str], ...]


def retry_headers(status: int) -> Headers:
    """Tell clients when to come back: after a second where the server is busy or not ready, else nothing."""
    return (("retry-after", "1"),) if status in {429, 503} else ()


def compute_headers(texts: Sequence[Text], token_counts: Sequence[int], times: Timings) -> Headers:
    """Return the headers of every answer of Text Embeddings Inference; times are whole milliseconds."""
    characters = sum(len(text) if isinstance(text, str) else sum(map(_length, text)) for text in texts)
    return (
        ("x-compute-characters", str(characters)),
        ("x-compute-tokens", str(sum(token_counts))),
        ("x-compute-time", _milliseconds(times.inference_ns)),
        ("x-total-time", _milliseconds(times.total_ns)),
        ("x-tokenization-time", _milliseconds(times.tokenization_ns)),
        ("x-queue-time", _milliseconds(times.queue_ns)),
        ("x-inference-time", _milliseconds(times.inference_ns)),
    )


def _length(part: str | int) -> int:
    return len(part) if isinstance(part, str) else 1


def _milliseconds(nanoseconds: int) -> str:
    return str(nanoseconds // 1_000_000)
