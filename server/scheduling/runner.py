"""The contract between the tasks and whatever runs the parts of their requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headrace.server.scheduling.policy import BatchingPolicy
    from headrace.server.scheduling.work import Part, PartResult


class BatchRunner(Protocol):
    """Queue and batches of one model version: the batcher itself, or the way to one in another process."""

    policy: BatchingPolicy

    @property
    def waiting(self) -> int:
        """Parts that wait in the queue."""

    @property
    def active(self) -> int:
        """Requests that have been admitted and not answered."""

    async def run(
        self, parts: Sequence[Part], *, priority: int = 0, timeout_us: int = 0, wait: bool = False
    ) -> list[PartResult]:
        """Execute the parts of one request: see :meth:`headrace.server.scheduling.batcher.Batcher.run`.

        Afterwards ``pending`` of each part has the durations.
        """
