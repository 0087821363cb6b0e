"""What the soak does, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EVERYBODY: Final = "all"
"""What bars call the soak's route."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Load, and what happens to it.

    Attributes:
        name: what ``--only`` takes.
        title: one line for people.
        models: that are loaded.
        callers: ask without a break.
        burst: callers that come on top of them for ``burst_seconds``, every ``burst_every`` seconds.
        burst_every: seconds from one burst to the next.
        burst_seconds: length of a burst.
        queue: texts that may wait in the server: a burst asks for more.
        leave: share of requests whose caller leaves before the answer.
        leave_seconds: longest time until it does.
        patience: seconds after which a request counts as unanswered.
        longest: words of the longest text; the model takes 254.
        kills: times that a worker is killed while warming up: a new worker has less memory than an old one.
        quiet_seconds: for so long only one caller asks, between the last kill and the end of warming up: what
            serves requests that are alone is loaded by the first one.
        warmup: share of the time after which memory is expected to stand still.
    """

    name: str = "soak"
    title: str = "random lengths, callers that leave, bursts beyond the queue, killed workers"
    models: tuple[str, ...] = ("minilm", "sentiment")
    callers: int = 16
    burst: int = 150
    burst_every: float = 20.0
    burst_seconds: float = 3.0
    queue: int = 128
    leave: float = 0.15
    leave_seconds: float = 1.5
    patience: float = 60.0
    longest: int = 400
    kills: int = 5
    quiet_seconds: float = 10.0
    warmup: float = 1 / 3


PLAN: Final = Plan()
