"""All instances of one model version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace.runtimes import wire
from headrace.runtimes.base import InstanceSpec
from headrace.server.scheduling.batcher import Batcher
from headrace.server.workers.instance import Instance, RestartPolicy


class WorkerGroup:
    """Starts, feeds and stops the worker processes of a model version.

    Args:
        specs: one per instance, at least one.
        restarts: when dead workers are started again.
        on_restart: called at every restart of any worker.
        on_failed: called with the reason when no instance is left that could be restarted.
    """

    def __init__(
        self,
        specs: Sequence[InstanceSpec],
        restarts: RestartPolicy,
        *,
        on_restart: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._on_failed = on_failed
        self._alive = len(specs)
        self.instances = [
            Instance(spec, restarts, on_restart=on_restart, on_failed=self._instance_failed) for spec in specs
        ]

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [instance.pid for instance in self.instances if instance.slots]

    async def start(self) -> wire.Loaded:
        """Start all workers at once: importing a framework takes longer than anything else they do.

        Raises:
            LoadFailedError: with the worker's reason; nothing is left running.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                starts = [tasks.create_task(instance.start()) for instance in self.instances]
        except BaseExceptionGroup as group:
            await self.stop()
            raise group.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        return starts[0].result()

    def attach(self, batcher: Batcher) -> None:
        """Let ``batcher`` feed the instances."""
        for instance in self.instances:
            instance.sink = batcher
            batcher.attach(instance)

    async def stop(self) -> None:
        """End all workers after the batches they have."""
        await asyncio.gather(*(instance.stop() for instance in self.instances))

    def _instance_failed(self, reason: str) -> None:
        self._alive -= 1
        if self._alive == 0:
            self._on_failed(reason)
