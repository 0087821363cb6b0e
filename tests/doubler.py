"""In-test instances for a batcher that really compute: they double what they are given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.wire import Executed, Tensor
from headrace.server.errors import TensorRefusedError, WorkerCrashedError
from headrace.server.scheduling.batch import Batch, chunks, layout
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.gathering import GATHER_NS
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part, PartInput
from headrace.server.telemetry.statistics import ModelStatistics


class Doubler:
    """An instance that doubles an INT32 tensor when it is told to finish its oldest batch.

    A batch with a value below 0 is refused as a runtime refuses what an operator cannot take.
    """

    def __init__(self, batcher: Batcher, *, slots: int = 1, lone_capable: bool = False) -> None:
        self.sink = batcher
        self.slots = slots
        self.lone_capable = lone_capable
        self.held: list[Batch] = []
        self.cancelled: list[Batch] = []

    @property
    def batches(self) -> int:
        return len(self.held)

    def send(self, batch: Batch) -> None:
        self.held.append(batch)

    def cancel(self, batch: Batch) -> None:
        if batch in self.held:
            self.cancelled.append(batch)

    def finish(self) -> Batch:
        batch = self.held.pop(0)
        values, shape = doubled(batch)
        if (values < 0).any():
            self.sink.failed(batch, TensorRefusedError(f"indices element out of bounds: {values.min() // 2}"))
        else:
            answer(self.sink, batch, values, shape)
        return batch

    def crash(self) -> None:
        held, self.held = self.held, []
        self.sink.failed(held[0], WorkerCrashedError("the worker died"))
        for batch in held[1:]:
            self.sink.returned(batch)


def doubled(batch: Batch) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Lay a batch of one input out as a worker gets it; twice its values, and its shape."""
    tensors, size = layout(batch.parts)
    block = bytearray(size)
    for offset, data in chunks(batch.parts, tensors):
        block[offset : offset + len(data)] = data
    (tensor,) = tensors
    return np.frombuffer(block, np.int32, count=tensor.size // 4, offset=tensor.offset) * 2, tensor.shape


def answer(sink: Batcher, batch: Batch, values: NDArray[np.int32], shape: tuple[int, ...]) -> None:
    """Answer a batch with one output, as a worker that took 1, 2 and 3 µs."""
    output = Tensor("OUT", "INT32", shape, 0, values.nbytes)
    reply = Executed(batch.id, (output,), values.nbytes, None, 1000, 2000, 3000)
    sink.executed(batch, reply, memoryview(values.tobytes()))


def part(*values: int, key: object = "k", tokens: int = 0) -> Part:
    data = np.array(values, np.int32).tobytes()
    inputs = [PartInput("IN", "INT32", (len(values),), data)]
    return Part(inputs, rows=len(values), tokens=tokens, key=key)


def start(batcher: Batcher, parts: Sequence[Part], **options: Any) -> asyncio.Task[list[int]]:
    async def run() -> list[int]:
        results = await batcher.run(parts, **options)
        return [int(value) for result in results for value in np.frombuffer(result["OUT"].data, np.int32)]

    return asyncio.get_running_loop().create_task(run())


async def settle() -> None:
    """Let batches be formed: whatever was under way before, no gathering takes longer."""
    end = time.monotonic_ns() + GATHER_NS
    while time.monotonic_ns() <= end:
        await asyncio.sleep(0)


def build(**policy: object) -> tuple[Batcher, ModelStatistics]:
    statistics = ModelStatistics()
    return Batcher(BatchingPolicy(**{"join": True, "max_rows": 4, **policy}), statistics), statistics  # type: ignore[arg-type]
