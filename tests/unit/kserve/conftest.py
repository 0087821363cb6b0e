"""Models for tests of the tensor protocols, and both KServe services over gRPC in this process.

Repository, batchers, interceptors and services are the real ones; only the worker processes are replaced, by
instances that compute with numpy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.api.httpbody_pb2 import HttpBody
from numpy.typing import NDArray
from raw_tensors import to_raw
from scripted_generation import ScriptedGenerator
from scripted_text import put_text_model

from headrace.kserve.v2 import grpc_service_pb2, grpc_service_pb2_grpc
from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.rest.v1 import kserve_pb2, kserve_pb2_grpc
from headrace.runtimes.datatypes import NUMPY_TYPES, pack_bytes, to_array
from headrace.runtimes.wire import Executed, Tensor
from headrace.server.errors import ExecutionFailedError, HeadraceError
from headrace.server.interceptors import Interceptors
from headrace.server.repository.definition import ModelFactory
from headrace.server.repository.instances import Machine
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.model import Model, ModelTensor, Task
from headrace.server.repository.registry import Repository
from headrace.server.scheduling.batch import Batch, chunks, layout
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy, QueuePolicy
from headrace.server.services import registry
from headrace.server.services.kserve import GRPCInferenceService
from headrace.server.services.kserve_generate import KserveGenerateService
from headrace.server.services.kserve_rest import KserveService
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.requests import RequestMetrics
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
        self.outputs: list[tuple[str, ...]] = []
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
        self.outputs.append(batch.parts[0].outputs)
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


MAX_BODY = 1 << 20


class Models:
    """Builds models and puts them into ``repository``; ``instances`` has the numpy instance of each."""

    def __init__(self, root: Path) -> None:
        self.instances: dict[str, Numpy] = {}
        # Nothing is loaded from files here, so there is nothing to build models with.
        self.repository = Repository([root], cast("ModelFactory", None), Machine(1))

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
        model = Model(
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
        generation = Generation(versions={1: VersionStatus.ready(model)})
        self.repository._entries[name] = Entry(name, generation=generation)
        return model

    def simple(self, **options: Any) -> Model:
        """OUTPUT0 = INPUT0 + INPUT1 with labels, OUTPUT1 = INPUT0 - INPUT1; INT32 [16], batches of 8."""
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

    def everything(self) -> None:
        """Build the models that the conformance tables speak of."""
        self.simple(name="addsub", max_batch_size=64)
        self.simple(name="nobatch", max_batch_size=0)
        for datatype in NUMPY_TYPES:
            self.identity(datatype, name=f"id_{'string' if datatype == 'BYTES' else datatype.lower()}")
        self.identity("BYTES", 1, name="id_str_batch", max_batch_size=4)


@dataclass(frozen=True)
class RestAnswer:
    """What Envoy would answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """Clients of both services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.grpc = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._rest = kserve_pb2_grpc.KserveServiceStub(channel)
        self.generating = kserve_pb2_grpc.KserveGenerateServiceStub(channel)

    async def rest(self, method: str, headers: Mapping[str, str] | None = None, **fields: Any) -> RestAnswer:
        """Call a facade method with request ``fields``; ``body`` is bytes."""
        if "body" in fields:
            fields["body"] = {"data": fields["body"]}
        request = getattr(kserve_pb2, f"KserveService{method}Request")(**fields)
        metadata = tuple((key.lower(), value) for key, value in (headers or {}).items())
        call = getattr(self._rest, method)(request, metadata=metadata)
        return await self._answer(call, await call)

    async def generate(
        self, model: str, body: Any, headers: Mapping[str, str] | None = None, version: str = ""
    ) -> RestAnswer:
        """Call ``generate``; ``body`` is bytes, or what the JSON says."""
        request = kserve_pb2.KserveGenerateServiceGenerateRequest(
            model=model,
            version=version,
            body={"data": body if isinstance(body, bytes) else json.dumps(body).encode()},
        )
        call = self.generating.Generate(request, metadata=tuple((headers or {}).items()))
        return await self._answer(call, await call)

    async def generate_stream(self, model: str, body: Any) -> RestAnswer:
        """Call ``generate_stream`` and join its pieces."""
        request = kserve_pb2.KserveGenerateServiceGenerateStreamRequest(
            model=model, body={"data": body if isinstance(body, bytes) else json.dumps(body).encode()}
        )
        call = self.generating.GenerateStream(request)
        pieces = [piece async for piece in call]
        joined = b"".join(piece.data for piece in pieces)
        return await self._answer(call, HttpBody(content_type=pieces[0].content_type, data=joined))

    async def _answer(self, call: Any, body: HttpBody) -> RestAnswer:
        answered = {key: str(value) for key, value in await call.initial_metadata()}
        answered["content-type"] = body.content_type
        return RestAnswer(int(answered.pop("x-http-status", "200")), answered, body.data)


@pytest.fixture
async def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


@pytest.fixture
def text(models: Models) -> Callable[..., ScriptedGenerator]:
    """Put model ``llm`` with a scripted engine into the repository."""
    return partial(put_text_model, models.repository)


@pytest.fixture
async def wire(models: Models, tokenizing: Tokenizing, tmp_path: Path) -> AsyncIterator[Wire]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    interceptors = Interceptors(RequestMetrics())
    generating = Generating(tokenizing)
    services = {
        grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]: GRPCInferenceService(
            models.repository, generating, "headrace"
        ),
        kserve_pb2.DESCRIPTOR.services_by_name["KserveGenerateService"]: KserveGenerateService(
            models.repository, generating
        ),
        kserve_pb2.DESCRIPTOR.services_by_name["KserveService"]: KserveService(
            models.repository, tokenizing, "headrace", MAX_BODY
        ),
    }
    for descriptor, service in services.items():
        methods = {
            method.name: registry._handler(
                "test", method, getattr(service, method.name), service, interceptors
            )
            for method in descriptor.methods
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(descriptor.full_name, methods),)
        )
    address = f"unix:{tmp_path / 'grpc.sock'}"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Wire(channel)
    await server.stop(0)


@pytest.fixture
def tokenizing() -> Iterator[Tokenizing]:
    pool = Tokenizing(1)
    yield pool
    pool.close()


@pytest.fixture(params=[name for name in NUMPY_TYPES if name != "BYTES"])
def fixed_datatype(request: pytest.FixtureRequest) -> str:
    """Every datatype whose elements have a fixed size."""
    return str(request.param)
