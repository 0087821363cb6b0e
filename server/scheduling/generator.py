"""The contract between the generate task and whatever runs a generation engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headrace.runtimes.generation.messages import EngineStats, Event
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.telemetry.generation import GenerationStatistics


class Ticket(Protocol):
    """One request in an engine."""

    async def admitted(self) -> None:
        """Return at once where ``submit`` has admitted the request; wait for that where it could not tell.

        Raises:
            QueueFullError: as many requests wait as may.
            ModelNotReadyError: the model was given up or is being unloaded.
        """

    async def events(self) -> Sequence[Event]:
        """Wait for news and return it in order; at least one event.

        News that came before a failure are returned before it is raised.

        Raises:
            InvalidArgumentError: the engine refused the request (a grammar that does not compile).
            ExecutionFailedError: the model failed.
            CancelledError: the ticket was closed while this waited.
            WorkerCrashedError: the engine's process died after the request was started.
            ModelNotReadyError: the model was given up or unloaded.
        """

    def end(self, sample: int) -> None:
        """Have the engine end one sample; no news of it come after those that came before. Idempotent."""

    def close(self) -> None:
        """Leave: whatever still runs is aborted. Idempotent."""


class Generator(Protocol):
    """All engines of one model version."""

    def submit(self, prompt: NDArray[np.int32], sampling: Sampling) -> Ticket:
        """Hand a request to the engine with the least work.

        Raises:
            QueueFullError: as many requests wait as may.
            ModelNotReadyError: the model was given up or is being unloaded.
        """

    @property
    def statistics(self) -> GenerationStatistics:
        """Counters; the generate task calls ``observe_finished`` once for each ticket."""

    @property
    def active(self) -> int:
        """Requests that have a ticket and have not ended."""

    @property
    def waiting(self) -> int:
        """Requests of those that no engine has started yet."""

    @property
    def running(self) -> int:
        """Requests that an engine has started."""

    @property
    def stats(self) -> Sequence[EngineStats]:
        """The latest statistics of each engine."""
