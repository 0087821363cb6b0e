"""All instances of one model version."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from headrace.runtimes import wire
from headrace.runtimes.base import InstanceSpec


class Startable(Protocol):
    """An instance of any kind."""

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""

    @property
    def ready(self) -> bool:
        """Whether the worker can take work."""

    async def start(self) -> wire.Loaded:
        """Spawn the worker and load the model."""

    async def stop(self) -> None:
        """End the worker."""


InstanceT = TypeVar("InstanceT", bound=Startable)


class WorkerGroup(Generic[InstanceT]):
    """Starts and stops the worker processes of a model version.

    Args:
        specs: one per instance, at least one.
        create: makes the instance for a spec; it calls its second argument, with the reason, when the
            instance is given up.
        on_failed: called with the reason when no instance is left that could be restarted.
    """

    def __init__(
        self,
        specs: Sequence[InstanceSpec],
        create: Callable[[InstanceSpec, Callable[[str], None]], InstanceT],
        on_failed: Callable[[str], None],
    ) -> None:
        self._on_failed = on_failed
        self._alive = len(specs)
        self.instances = [
            create(dataclasses.replace(spec, number=number, instances=len(specs)), self._instance_failed)
            for number, spec in enumerate(specs)
        ]

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [instance.pid for instance in self.instances if instance.ready]

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

    async def stop(self) -> None:
        """End all workers after the batches they have."""
        await asyncio.gather(*(instance.stop() for instance in self.instances))

    def _instance_failed(self, reason: str) -> None:
        self._alive -= 1
        if self._alive == 0:
            self._on_failed(reason)
