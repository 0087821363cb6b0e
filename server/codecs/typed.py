"""Messages that the typed services (``headrace.v1``) share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from headrace.server.tasks.text_encoding import Direction
from headrace.v1 import common_pb2

if TYPE_CHECKING:
    from headrace.server.tasks.text_models import Timings


def direction(value: common_pb2.TruncationDirection) -> Direction:
    """Read a truncation direction; unspecified is right."""
    return Direction.LEFT if value == common_pb2.TRUNCATION_DIRECTION_LEFT else Direction.RIGHT


def usage(token_counts: Sequence[int], into: common_pb2.Usage | None = None) -> common_pb2.Usage:
    """Count the tokens of a call that produces none; ``into`` is filled, if given, which saves copying."""
    filled = common_pb2.Usage() if into is None else into
    filled.prompt_tokens = filled.total_tokens = sum(token_counts)
    return filled


def timings(times: Timings, into: common_pb2.Timings | None = None) -> common_pb2.Timings:
    """Convert nanoseconds to durations; ``into`` is filled, if given, which saves copying."""
    filled = common_pb2.Timings() if into is None else into
    _set(filled.total_duration, times.total_ns)
    _set(filled.tokenization_duration, times.tokenization_ns)
    _set(filled.queue_duration, times.queue_ns)
    _set(filled.inference_duration, times.inference_ns)
    return filled


def duration(nanoseconds: int) -> Duration:
    """Convert nanoseconds to a ``Duration``."""
    filled = Duration()
    _set(filled, nanoseconds)
    return filled


def _set(filled: Duration, nanoseconds: int) -> None:
    filled.seconds, filled.nanos = divmod(nanoseconds, 1_000_000_000)
