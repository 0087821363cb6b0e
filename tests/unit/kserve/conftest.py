"""Models for tests of the tensor protocols: real batchers over in-test instances that compute with numpy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.datatypes import NUMPY_TYPES, pack_bytes, to_array, to_raw
from headrace.runtimes.wire import Executed, Tensor
from headrace.server.errors import ExecutionFailedError, HeadraceError
from headrace.server.repository.model import Model, ModelTensor, Task
from headrace.server.scheduling.batch import Batch, chunks, layout
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy, QueuePolicy
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.statistics import ModelStatistics

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Arrays], Arrays]


class Numpy:
    """An instance that runs each batch through a numpy function; ``open`` False makes batches wait."""

    slots = 2
    lone_capable = False

    def __init__(self, batcher: Batcher, compute: Compute) -> None:
        self.batcher = batcher
        self.compute = compute
        self.open = True
        self.held: list[Batch] = []
        self.shapes: list[dict[str, tuple[int, ...]]] = []
        batcher.attach(self)

    @property
    def batches(self) -> int:
        return len(self.held)

    def send(self, batch: Batch) -> None:
        self.held.append(batch)
        if self.open:
            asyncio.get_running_loop().call_soon(self.finish, batch)

    def cancel(self, batch: Batch) -> None:
        """Let the batch run on: what it computes is thrown away."""

    def release(self) -> None:
        self.open = True
        for batch in list(self.held):
            self.finish(batch)

    def finish(self, batch: Batch) -> None:
        self.held.remove(batch)
        tensors, size = layout(batch.parts)
        block = bytearray(size)
        for offset, data in chunks(batch.parts, tensors):
            block[offset : offset + len(data)] = data
        inputs = {
            tensor.name: to_array(
                tensor.datatype, tensor.shape, bytes(block[tensor.offset : tensor.offset + tensor.size])
            )
            for tensor in tensors
        }
        self.shapes.append({name: array.shape for name, array in inputs.items()})
        try:
            outputs = self.compute(inputs)
        except HeadraceError as error:
            self.batcher.failed(batch, error)
            return
        wanted = batch.parts[0].outputs or tuple(outputs)
        described: list[Tensor] = []
        content = bytearray()
        for name in wanted:
            datatype, raw = to_raw(outputs[name])
            array = outputs[name]
            ends = None
            if datatype == "BYTES" and array.ndim:
                rows = array.reshape(len(array), -1).tolist()
                ends = tuple(np.cumsum([len(pack_bytes(row)) for row in rows]).tolist())
            described.append(Tensor(name, datatype, array.shape, len(content), len(raw), ends))
            content += raw
        reply = Executed(batch.id, tuple(described), len(content), None, 1, 2, 3)
        self.batcher.executed(batch, reply, memoryview(bytes(content)))


def add_sub(inputs: Arrays) -> Arrays:
    return {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}


def identity(inputs: Arrays) -> Arrays:
    return {"OUTPUT0": inputs["INPUT0"]}


def failing(inputs: Arrays) -> Arrays:
    raise ExecutionFailedError("model says no")


class Models:
    """Builds models; ``instances`` has the numpy instance of each by name."""

    def __init__(self) -> None:
        self.instances: dict[str, Numpy] = {}

    def build(
        self,
        name: str,
        inputs: Sequence[ModelTensor],
        outputs: Sequence[ModelTensor],
        compute: Compute,
        *,
        max_batch_size: int = 0,
        parameters: Mapping[str, str] | None = None,
        max_queue: int = 1000,
    ) -> Model:
        config = ModelConfig(name=name, max_batch_size=max_batch_size)
        for key, value in (parameters or {}).items():
            config.parameters[key].string_value = value
        statistics = ModelStatistics()
        policy = BatchingPolicy(
            max_rows=max(1, max_batch_size),
            join=max_batch_size > 0,
            max_queue=max_queue,
            queue=QueuePolicy(allow_override=True),
        )
        batcher = Batcher(policy, statistics)
        self.instances[name] = Numpy(batcher, compute)
        return Model(
            name=name,
            version=1,
            task=Task.TENSORS,
            platform="python",
            config=config,
            max_batch_size=max_batch_size,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batcher=batcher,
            statistics=statistics,
        )

    def simple(self, **options: Any) -> Model:
        """OUTPUT0 = INPUT0 + INPUT1 with labels, OUTPUT1 = INPUT0 − INPUT1; INT32 [16], batches of 8."""
        dims, labels = (16,), tuple(f"label{index}" for index in range(16))
        return self.build(
            options.pop("name", "simple"),
            [ModelTensor("INPUT0", "INT32", dims), ModelTensor("INPUT1", "INT32", dims)],
            [ModelTensor("OUTPUT0", "INT32", dims, labels=labels), ModelTensor("OUTPUT1", "INT32", dims)],
            add_sub,
            **{"max_batch_size": 8, **options},
        )

    def identity(self, datatype: str, *dims: int, name: str = "", **options: Any) -> Model:
        """OUTPUT0 = INPUT0; one dimension that varies unless ``dims`` says otherwise."""
        shape = dims or (-1,)
        return self.build(
            name or f"id_{datatype.lower()}",
            [ModelTensor("INPUT0", datatype, shape)],
            [ModelTensor("OUTPUT0", datatype, shape)],
            options.pop("compute", identity),
            **options,
        )

    def optional(self) -> Model:
        """One required and one optional input."""
        inputs = [ModelTensor("INPUT0", "FP32", (-1,)), ModelTensor("INPUT1", "FP32", (-1,), optional=True)]
        return self.build("opt", inputs, [ModelTensor("OUTPUT0", "FP32", (-1,))], identity)

    def failing(self) -> Model:
        return self.identity("FP32", name="failing", compute=failing)


@pytest.fixture
async def models() -> Models:
    return Models()


@pytest.fixture
def tokenizing() -> Iterator[Tokenizing]:
    pool = Tokenizing(1)
    yield pool
    pool.close()


@pytest.fixture(params=[name for name in NUMPY_TYPES if name != "BYTES"])
def fixed_datatype(request: pytest.FixtureRequest) -> str:
    """Every datatype whose elements have a fixed size."""
    return str(request.param)
