"""The batcher of a model, and how the parts of one request are sent to it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.server.errors import UnsupportedError

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.runner import BatchRunner
    from headrace.server.scheduling.work import Part, PartResult

MAX_PARTS: Final = 512
"""Parts of one request that are queued at a time: a larger one goes in turns and leaves room for others."""


def batcher_of(model: Model) -> BatchRunner:
    """Return the batcher of ``model``.

    Raises:
        UnsupportedError: the model generates text, which takes other requests.
    """
    if model.batcher is None:
        raise UnsupportedError(
            f"model '{model.name}' generates text and takes no tensors: use /v1/chat/completions, "
            "/v1/completions or headrace.v1.GenerationService",
            model=model.name,
            task=model.task.value,
        )
    return model.batcher


class Queueing(NamedTuple):
    """How the parts of a request wait for their batches.

    Attributes:
        priority: as ``BatchRunner.run`` takes it; 0 for the model's default.
        timeout_us: longest wait in microseconds; 0 for the model's own.
        wait: for room in the model's queue, instead of being refused when it is full.
    """

    priority: int = 0
    timeout_us: int = 0
    wait: bool = False

    def after(self, first: int) -> Queueing:
        """Return how parts wait of which ``first`` went before: what has begun waits for room."""
        return self._replace(wait=True) if first else self


USUAL: Final = Queueing()


async def run_in_turns(
    batcher: BatchRunner, parts: Sequence[Part], queueing: Queueing = USUAL
) -> list[PartResult]:
    """Run the parts of one request, no more at a time than ``MAX_PARTS`` or than the queue holds.

    The parts of a turn are admitted all or none. The first turn is refused when the queue has no room for it,
    unless ``wait``; later ones wait for room. Nothing of a request is in the queue while it waits, so no two
    requests wait for each other.

    Args:
        batcher: the model's.
        parts: at least one.
        queueing: how each turn waits in the queue.

    Raises:
        HeadraceError: what the batcher raises; what has not run by then is given up.
    """
    most = 1
    if len(parts) > 1:
        level = batcher.policy.level(queueing.priority)
        most = max(1, min(MAX_PARTS, batcher.policy.capacity(level)))
    if len(parts) <= most:
        return await _run(batcher, parts, queueing)
    results: list[PartResult] = []
    for start in range(0, len(parts), most):
        turn = parts[start : start + most]
        results += await _run(batcher, turn, queueing.after(start))
    return results


def _run(batcher: BatchRunner, parts: Sequence[Part], queueing: Queueing) -> Awaitable[list[PartResult]]:
    return batcher.run(parts, priority=queueing.priority, timeout_us=queueing.timeout_us, wait=queueing.wait)
