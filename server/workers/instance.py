"""One model instance: an executor for the batcher that survives the deaths of its worker process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from headrace.runtimes import wire
from headrace.server.errors import (
    CancelledError,
    ExecutionFailedError,
    HeadraceError,
    InvalidTensorError,
    LoadFailedError,
    WorkerCrashedError,
)
from headrace.server.scheduling.batch import chunks, layout
from headrace.server.workers.process import WorkerProcess

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec
    from headrace.server.scheduling.batch import Batch

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a dead worker is started again.

    Attributes:
        initial_seconds: wait before the first restart; doubles with each further one.
        max_seconds: longest wait between restarts.
        attempts: restarts in a row that may fail before the instance is given up.
        healthy_seconds: a worker that lived this long counts as recovered.
    """

    initial_seconds: float = 0.1
    max_seconds: float = 10.0
    attempts: int = 5
    healthy_seconds: float = 30.0


class BatchSink(Protocol):
    """Where outcomes go: the batcher."""

    def executed(self, batch: Batch, reply: wire.Executed, block: memoryview) -> None:
        """Take the outputs of a batch."""

    def failed(self, batch: Batch, error: HeadraceError) -> None:
        """Take the failure of a batch."""

    def returned(self, batch: Batch) -> None:
        """Take back a batch that was not begun."""

    def schedule(self) -> None:
        """Note that the instance can take batches again."""


class Instance:
    """Runs batches in a worker process and restarts the process when it dies.

    Args:
        spec: what the worker loads.
        restarts: when a dead worker is started again.
        on_restart: called at every restart.
        on_failed: called with the reason when the instance is given up.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        restarts: RestartPolicy,
        *,
        on_restart: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.sink: BatchSink | None = None
        self._restarts = restarts
        self._on_restart = on_restart
        self._on_failed = on_failed
        self._process: WorkerProcess | None = None
        self._running: dict[int, tuple[Batch, int]] = {}  # id → (batch, slot), oldest first
        self._free = list(range(wire.SLOTS))
        self._next_id = 0
        self._ready = False
        self._stopping = False
        self._restart: asyncio.Task[None] | None = None
        self._started = 0.0
        self._failures = 0

    @property
    def batches(self) -> int:
        """Batches with the worker now."""
        return len(self._running)

    @property
    def slots(self) -> int:
        """Batches the worker can hold now; 0 while it is not running."""
        return wire.SLOTS if self._ready else 0

    @property
    def lone_capable(self) -> bool:
        """Whether the instance has an all-threads form for a batch that runs alone."""
        return self.spec.lone_threads > self.spec.threads

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""
        return self._process.pid if self._process else 0

    async def start(self) -> wire.Loaded:
        """Spawn the worker and load the model.

        Raises:
            LoadFailedError: with the worker's reason.
        """
        process = WorkerProcess(self._reply, self._exited)
        self._process = process
        loaded = await process.start(self.spec)
        self._ready = True
        self._started = time.monotonic()
        if self.sink is not None:
            self.sink.schedule()
        return loaded

    async def stop(self) -> None:
        """End the worker after the batches it has, and do not restart it."""
        self._stopping = True
        self._ready = False
        if self._restart is not None:
            self._restart.cancel()
        if self._process is not None:
            await self._process.stop()

    # Executor, for the batcher.

    def send(self, batch: Batch) -> None:
        """Lay the batch out and write it to the worker."""
        process = self._process
        if process is None or not self._ready:
            msg = "a batch was sent to an instance without a worker"
            raise RuntimeError(msg)
        self._next_id += 1
        batch.id = self._next_id
        slot = self._free.pop()
        self._running[batch.id] = (batch, slot)
        tensors, size = layout(batch.parts)
        block: bytes | None = None
        if size <= wire.INLINE_LIMIT:
            inline = bytearray(size)
            for offset, data in chunks(batch.parts, tensors):
                inline[offset : offset + len(data)] = data
            block = bytes(inline)
        else:
            view = process.inputs[slot].view(size)
            for offset, data in chunks(batch.parts, tensors):
                view[offset : offset + len(data)] = data
        process.send(wire.Execute(batch.id, slot, batch.lone, tensors, batch.parts[0].outputs, size, block))

    def cancel(self, batch: Batch) -> None:
        """Tell the worker to give up a batch, if it is this instance's."""
        if self._process is not None and batch.id in self._running and self._running[batch.id][0] is batch:
            self._process.cancel(batch.id)

    # Callbacks of the process.

    def _reply(self, reply: wire.Executed | wire.Failed) -> None:
        entry = self._running.pop(reply.batch, None)
        if entry is None or self.sink is None or self._process is None:
            return
        batch, slot = entry
        self._free.append(slot)
        if isinstance(reply, wire.Executed):
            block = (
                memoryview(reply.block)
                if reply.block is not None
                else self._process.outputs[slot].view(reply.size)
            )
            self._failures = 0
            self.sink.executed(batch, reply, block)
            return
        self.sink.failed(batch, _error(reply))

    def _exited(self, reason: str) -> None:
        was_ready, self._ready = self._ready, False
        running, self._running = self._running, {}
        self._free = list(range(wire.SLOTS))
        report = log.info if self._stopping else log.error
        report("worker ended", model=self.spec.model, pid=self.pid, reason=reason, in_flight=len(running))
        if self.sink is not None:
            batches = [entry[0] for entry in running.values()]
            error = WorkerCrashedError(
                f"the worker process of model '{self.spec.model}' ended while it ran this request; "
                "it is being restarted, the request may be sent again",
                model=self.spec.model,
            )
            for batch in batches[:1]:
                self.sink.failed(batch, error)
            for batch in batches[1:]:  # they were waiting in its socket
                self.sink.returned(batch)
        if was_ready and not self._stopping:
            if time.monotonic() - self._started > self._restarts.healthy_seconds:
                self._failures = 0
            self._restart = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            policy = self._restarts
            await asyncio.sleep(min(policy.max_seconds, policy.initial_seconds * 2**self._failures))
            self._failures += 1
            if self._failures > policy.attempts:
                self._on_failed(f"the worker process died {self._failures} times in a row")
                return
            self._on_restart()
            try:
                await self.start()
            except LoadFailedError as error:
                log.warning("worker restart failed", model=self.spec.model, reason=error.message)
            else:
                log.info("worker restarted", model=self.spec.model, pid=self.pid)
                return


def _error(reply: wire.Failed) -> HeadraceError:
    match reply.kind:
        case "invalid":
            return InvalidTensorError(reply.message)
        case "cancelled":
            return CancelledError("the request was cancelled while it ran")
        case _:
            return ExecutionFailedError(reply.message)
