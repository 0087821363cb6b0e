"""What a load generator is told and what it answers; both travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.estimates import Times, Window


@dataclass(frozen=True, slots=True)
class Job:
    """A closed loop: ``clients`` callers, each with a connection of its own, ask again as soon as answered.

    Attributes:
        protocol: how to ask.
        address: ``host:port``.
        target: the gRPC method or the URL path.
        headers: gRPC metadata or HTTP headers.
        bodies: serialised requests, taken in turn by whichever caller is free.
        weights: what each of ``bodies`` counts.
        clients: callers, at least 1.
        window: requests under way in this span of the monotonic clock are measured.
    """

    protocol: Literal["grpc", "http"]
    address: str
    target: str
    headers: tuple[tuple[str, str], ...]
    bodies: tuple[bytes, ...]
    weights: tuple[float, ...]
    clients: int
    window: Window


@dataclass(slots=True)
class Outcome:
    """When each request began and ended (monotonic seconds), what it counts, and what went wrong.

    ``errors`` has the first texts, ``failed`` the number.
    """

    starts: Times
    ends: Times
    weights: Times
    errors: list[str] = field(default_factory=list)
    failed: int = 0
