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


def compute_headers(
    texts: Sequence[Text], token_counts: Sequence[int], times: Timings, compute_type: str
) -> Headers:
    """Return the headers of every answer of Text Embeddings Inference; times are whole milliseconds."""
    return cost_headers(
        compute_type,
        count_characters(texts),
        sum(token_counts),
        total_ns=times.total_ns,
        tokenization_ns=times.tokenization_ns,
        queue_ns=times.queue_ns,
        inference_ns=times.inference_ns,
    )


def cost_headers(
    compute_type: str,
    characters: int,
    tokens: int,
    *,
    total_ns: int,
    tokenization_ns: int,
    queue_ns: int,
    inference_ns: int,
) -> Headers:
    """Return the same of what was counted already; ``compute_type`` names the device."""
    return (
        ("x-compute-type", compute_type),
        ("x-compute-characters", str(characters)),
        ("x-compute-tokens", str(tokens)),
        ("x-compute-time", _milliseconds(total_ns)),
        ("x-total-time", _milliseconds(total_ns)),
        ("x-tokenization-time", _milliseconds(tokenization_ns)),
        ("x-queue-time", _milliseconds(queue_ns)),
        ("x-inference-time", _milliseconds(inference_ns)),
    )


def count_characters(texts: Sequence[Text]) -> int:
    """Count what a request is charged for: the characters of texts, the tokens of token ids."""
    return sum(len(text) if isinstance(text, str) else sum(map(_length, text)) for text in texts)


def _length(part: str | int) -> int:
    return len(part) if isinstance(part, str) else 1


def _milliseconds(nanoseconds: int) -> str:
    return str(nanoseconds // 1_000_000)
