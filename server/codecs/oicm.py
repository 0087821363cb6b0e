"""Bodies of the Open Innovation Cluster Manager's own paths. Source: its Inference Gateway Guide."""

from __future__ import annotations

import msgspec

from headrace.server.codecs.json_body import encode
from headrace.server.tasks.classify import Classifications


class ClassifyBody(msgspec.Struct):
    """Body of ``/classify``: a text gives one list of labels, a list of texts a list of lists."""

    inputs: str | list[str]
    raw_scores: bool | None = None
    top_k: int | None = None
    truncate: bool | None = None
    truncation_direction: str | None = None
    model: str | None = None


def classification_json(result: Classifications, *, batch: bool) -> bytes:
    """Encode ``{"classification": [{"label", "score"}, …]}``, or a list of such lists for a batch."""
    rows = [
        [{"label": label, "score": score} for label, score in result.named(row)]
        for row in range(len(result.token_counts))
    ]
    return encode({"classification": rows if batch else rows[0]})
