"""What became of requests, in counts that processes hand to each other."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_HTTP_REFUSALS: Final = (400, 413, 422, 424, 429, 503, 504)
_GRPC_REFUSALS: Final = (3, 4, 8, 14)
REFUSALS: Final = frozenset(
    {*(f"HTTP {code}" for code in _HTTP_REFUSALS), *(f"gRPC {code}" for code in _GRPC_REFUSALS)}
)
"""Answers that say no: too long, overloaded, or the worker that had it is gone. All others are failures."""

_HTTP: Final = re.compile(r"http/1\.1 (\d{3})")
_GRPC: Final = re.compile(r"grpc-status\\x0[12](\d{1,2})")
MAX_ERRORS: Final = 5


@dataclass(slots=True)
class Tally:
    """Counts of one moment.

    Attributes:
        answered: good answers.
        left: requests whose caller left.
        refused: refusals by status.
        failed: other errors by status.
        unanswered: requests without an answer within the patience, or whose connection broke.
        errors: the first texts of ``failed`` and ``unanswered``.
    """

    answered: int = 0
    left: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    errors: list[str] = field(default_factory=list)

    def note(self, wire: str, error: Exception) -> None:
        """Count a request that was not answered well."""
        text = str(error)
        status = status_of(text)
        if status in REFUSALS:
            self.refused[status] += 1
            return
        if status is None:
            self.unanswered += 1
        else:
            self.failed[status] += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(f"{wire}: {type(error).__name__}: {text}"[:400])

    @property
    def total(self) -> int:
        """All requests that have ended."""
        said_no = self.refused.total() + self.failed.total()
        return self.answered + self.left + said_no + self.unanswered


def status_of(error: str) -> str | None:
    """Return ``HTTP 429`` or ``gRPC 8`` out of a client's error text; None for no answer at all."""
    for name, pattern in (("HTTP", _HTTP), ("gRPC", _GRPC)):
        if found := pattern.search(error):
            return f"{name} {found[1]}"
    return None
