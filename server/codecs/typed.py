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


def usage(token_counts: Sequence[int]) -> common_pb2.Usage:
    """Count the tokens of a call that produces none."""
    tokens = sum(token_counts)
    return common_pb2.Usage(prompt_tokens=tokens, total_tokens=tokens)


def timings(times: Timings) -> common_pb2.Timings:
    """Convert nanoseconds to durations."""
    return common_pb2.Timings(
        total_duration=duration(times.total_ns),
        tokenization_duration=duration(times.tokenization_ns),
        queue_duration=duration(times.queue_ns),
        inference_duration=duration(times.inference_ns),
    )


def duration(nanoseconds: int) -> Duration:
    """Convert nanoseconds to a ``Duration``."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)
