"""The batcher of a model, and how the parts of one request are sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

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


async def run_in_turns(
    batcher: BatchRunner, parts: Sequence[Part], *, priority: int = 0, timeout_us: int = 0, wait: bool = False
) -> list[PartResult]:
    """Run the parts of one request, no more at a time than ``MAX_PARTS`` or than the queue holds.

    The parts of a turn are admitted all or none. The first turn is refused when the queue has no room for it,
    unless ``wait``; later ones wait for room. Nothing of a request is in the queue while it waits, so no two
    requests wait for each other.

    Args:
        batcher: the model's.
        parts: at least one.
        priority: as ``BatchRunner.run`` takes it.
        timeout_us: likewise; each turn may wait so long in the queue.
        wait: have the first turn wait for room too.

    Raises:
        HeadraceError: what the batcher raises; what has not run by then is given up.
    """
    most = 1
    if len(parts) > 1:
        level = batcher.policy.level(priority)
        most = max(1, min(MAX_PARTS, batcher.policy.capacity(level)))
    if len(parts) <= most:
        return await batcher.run(parts, priority=priority, timeout_us=timeout_us, wait=wait)
    results: list[PartResult] = []
    for start in range(0, len(parts), most):
        turn = parts[start : start + most]
        results += await batcher.run(turn, priority=priority, timeout_us=timeout_us, wait=wait or start > 0)
    return results
