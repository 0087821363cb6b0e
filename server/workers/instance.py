"""One model instance: an executor for the batcher that survives the deaths of its worker process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from headrace.runtimes import wire
from headrace.server.errors import (
    CancelledError,
    ExecutionFailedError,
    HeadraceError,
    TensorRefusedError,
)
from headrace.server.scheduling.batch import chunks, layout
from headrace.server.workers.supervised import RestartPolicy, SupervisedWorker

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec
    from headrace.server.scheduling.batch import Batch
    from headrace.server.scheduling.batcher import Batcher

log = structlog.get_logger(__name__)

_REPLIES: Final = msgspec.msgpack.Decoder(wire.Reply)


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
        self._sink: BatchSink | None = None
        self._worker: SupervisedWorker[wire.Executed | wire.Failed] = SupervisedWorker(
            spec,
            restarts,
            _REPLIES,
            on_reply=self._reply,
            on_ready=self._ready,
            on_death=self._died,
            on_restart=on_restart,
            on_failed=on_failed,
        )
        self._running: dict[int, tuple[Batch, int]] = {}  # id → (batch, slot), oldest first
        self._free = list(range(wire.SLOTS))
        self._next_id = 0

    @property
    def batches(self) -> int:
        """Batches with the worker now."""
        return len(self._running)

    @property
    def slots(self) -> int:
        """Batches the worker can hold now; 0 while it is not running."""
        return wire.SLOTS if self._worker.ready else 0

    @property
    def lone_capable(self) -> bool:
        """Whether the instance has an all-threads form for a batch that runs alone."""
        return self.spec.lone_threads > self.spec.threads

    @property
    def ready(self) -> bool:
        """Whether the worker can take batches."""
        return self._worker.ready

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""
        return self._worker.pid

    async def start(self) -> wire.Loaded:
        """Spawn the worker and load the model.

        Raises:
            LoadFailedError: with the worker's reason.
        """
        return await self._worker.start()

    async def stop(self) -> None:
        """End the worker after the batches it has, and do not restart it."""
        await self._worker.stop()

    def attach(self, batcher: Batcher) -> None:
        """Let ``batcher`` feed this instance."""
        self._sink = batcher
        batcher.attach(self)

    # Executor, for the batcher.

    def send(self, batch: Batch) -> None:
        """Lay the batch out and write it to the worker; one that cannot be written has failed."""
        self._next_id += 1
        batch.id = self._next_id
        try:
            self._write(batch, self._free[-1])
        except Exception as error:  # noqa: BLE001 - the batch's requests must be answered whatever it is
            self._lost(batch, "sent to", error)
            return
        self._running[batch.id] = (batch, self._free.pop())

    def _write(self, batch: Batch, slot: int) -> None:
        process = self._worker.process
        if process is None or not self._worker.ready:
            msg = "a batch was sent to an instance without a worker"
            raise RuntimeError(msg)
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
        process.send(
            wire.Execute(
                batch.id, slot, batch.lone, tensors, batch.parts[0].outputs, size, block, batch.beside
            )
        )

    def cancel(self, batch: Batch) -> None:
        """Tell the worker to give up a batch, if it is this instance's."""
        process = self._worker.process
        if process is not None and batch.id in self._running and self._running[batch.id][0] is batch:
            process.cancel(batch.id)

    # Callbacks of the worker.

    def _reply(self, reply: wire.Executed | wire.Failed) -> None:
        entry = self._running.pop(reply.batch, None)
        process = self._worker.process
        if entry is None or self._sink is None or process is None:
            return
        batch, slot = entry
        self._free.append(slot)
        if isinstance(reply, wire.Failed):
            self._sink.failed(batch, _error(reply))
            return
        self._worker.worked()
        try:
            block = (
                memoryview(reply.block) if reply.block is not None else process.outputs[slot].view(reply.size)
            )
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(batch, "received from", error)
            return
        self._sink.executed(batch, reply, block)

    def _lost(self, batch: Batch, way: str, error: Exception) -> None:
        """Fail a batch that did not get through."""
        log.error("batch lost", model=self.spec.model, rows=batch.rows, exc_info=error)
        if self._sink is not None:
            msg = f"internal error: the batch could not be {way} the worker of model '{self.spec.model}'"
            self._sink.failed(batch, HeadraceError(msg, model=self.spec.model))

    def _ready(self) -> None:
        if self._sink is not None:
            self._sink.schedule()

    def _died(self) -> int:
        running, self._running = self._running, {}
        self._free = list(range(wire.SLOTS))
        if self._sink is not None:
            batches = [entry[0] for entry in running.values()]
            for batch in batches[:1]:
                self._sink.failed(batch, self._worker.crashed())
            for batch in batches[1:]:  # they were waiting in its socket
                self._sink.returned(batch)
        return len(running)


def _error(reply: wire.Failed) -> HeadraceError:
    match reply.kind:
        case "invalid":
            return TensorRefusedError(reply.message)
        case "cancelled":
            return CancelledError("the request was cancelled while it ran")
        case _:
            return ExecutionFailedError(reply.message)
