"""The worker process over its real sockets and regions, driven as the server drives it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from raw_tensors import to_raw
from worker_process import REPLY_TIMEOUT_S, WorkerProcess

from headrace.runtimes.base import InstanceSpec, TextSpec
from headrace.runtimes.datatypes import to_array
from headrace.runtimes.wire import (
    INLINE_LIMIT,
    Cancel,
    Execute,
    Executed,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Reply,
    Tensor,
    frame,
)

ENDLESS = np.array(10**9, np.int64)
"""Iterations of the loop model that nobody has time for."""


class Worker:
    """A worker that runs batches."""

    def __init__(self) -> None:
        self.own = WorkerProcess()
        self._replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

    def load(self, instance: InstanceSpec) -> Reply:
        self.own.send(Load(instance))
        return self.receive()

    def send(
        self,
        batch: int,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        slot: int = 0,
        beside: bool = False,
    ) -> None:
        tensors: list[Tensor] = []
        parts: list[bytes] = []
        end = 0
        for name, array in inputs.items():
            datatype, raw = to_raw(array)
            start = -(-end // 64) * 64
            tensors.append(Tensor(name, datatype, array.shape, start, len(raw)))
            parts.append(raw)
            end = start + len(raw)
        inline = bytearray(end) if end <= INLINE_LIMIT else None
        block = self.own.regions[2 * slot].view(end) if inline is None else memoryview(inline)
        for tensor, raw in zip(tensors, parts, strict=True):
            block[tensor.offset : tensor.offset + tensor.size] = raw
        content = None if inline is None else bytes(inline)
        request = Execute(batch, slot, False, tuple(tensors), tuple(outputs), end, content, beside)
        self.own.send(request)

    def cancel(self, batch: int) -> None:
        self.own.control.sendall(frame(Cancel(batch)))

    def receive(self) -> Reply:
        return self.own.receive(self._replies)

    def arrays(self, reply: Reply, slot: int = 0) -> dict[str, NDArray[Any]]:
        assert isinstance(reply, Executed), reply
        region = self.own.regions[2 * slot + 1]
        block = region.view(reply.size) if reply.block is None else memoryview(reply.block)
        return {
            tensor.name: to_array(
                tensor.datatype, tensor.shape, block[tensor.offset : tensor.offset + tensor.size]
            ).copy()
            for tensor in reply.outputs
        }

    def run(
        self, batch: int, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = (), *, slot: int = 0
    ) -> dict[str, NDArray[Any]]:
        self.send(batch, inputs, outputs, slot=slot)
        return self.arrays(self.receive(), slot)

    def proc(self, name: str) -> Path:
        return Path(f"/proc/{self.own.process.pid}/{name}")


@pytest.fixture
def start() -> Iterator[Callable[[], Worker]]:
    """Start workers; every one must end by itself, with status 0, when its socket is closed."""
    workers: list[Worker] = []

    def starter() -> Worker:
        workers.append(Worker())
        return workers[-1]

    yield starter
    running = [worker.own.process.poll() is None for worker in workers]
    statuses = [worker.own.close() for worker in workers]
    assert not any(status for status, ran in zip(statuses, running, strict=True) if ran)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> InstanceSpec:
    """Y = X + 1, ``times`` times over, in an ONNX loop: as fast or as slow as asked."""
    one = numpy_helper.from_array(np.array([1.0], np.float32), "one")
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Add", ["before", "one"], ["after"]),
        ],
        "body",
        [
            value("number", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, None),
        ],
        [value("still_going", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "X"], ["Y"], body=body)],
        "loop",
        [value("times", TensorProto.INT64, []), value("X", TensorProto.FLOAT, ["rows", "columns"])],
        [value("Y", TensorProto.FLOAT, ["rows", "columns"])],
        [one],
    )
    folder = tmp_path_factory.mktemp("loop")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return InstanceSpec("loop", "onnx", str(folder))


@pytest.fixture
def worker(start: Callable[[], Worker], loop: InstanceSpec) -> Worker:
    worker = start()
    assert isinstance(worker.load(loop), Loaded)
    return worker


def batch_of(rows: int, columns: int = 1, times: int = 1) -> dict[str, NDArray[Any]]:
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return {"times": np.array(times, np.int64), "X": values}


def test_load_says_what_the_model_has(start: Callable[[], Worker], loop: InstanceSpec) -> None:
    loaded = start().load(loop)
    assert isinstance(loaded, Loaded)
    assert [(spec.name, spec.datatype, spec.shape) for spec in loaded.inputs] == [
        ("times", "INT64", ()),
        ("X", "FP32", (-1, -1)),
    ]
    assert [spec.name for spec in loaded.outputs] == ["Y"]
    assert loaded.platform == "onnxruntime_onnx"


def test_a_small_batch_travels_inside_the_frame(worker: Worker) -> None:
    worker.send(1, batch_of(3, 2, times=5))
    reply = worker.receive()
    assert isinstance(reply, Executed)
    assert (reply.batch, reply.size) == (1, 24)
    assert reply.block is not None
    assert min(reply.input_ns, reply.infer_ns, reply.output_ns) > 0
    np.testing.assert_array_equal(worker.arrays(reply)["Y"], batch_of(3, 2)["X"] + 5)


def test_a_megabyte_travels_through_the_regions(worker: Worker) -> None:
    inputs = batch_of(1024, 256, times=3)
    worker.send(1, inputs, slot=1)
    reply = worker.receive()
    assert isinstance(reply, Executed)
    assert reply.block is None
    np.testing.assert_array_equal(worker.arrays(reply, slot=1)["Y"], inputs["X"] + 3)


def test_regions_grow_with_the_batches(worker: Worker) -> None:
    for batch, rows in enumerate((5_000, 50_000, 200, 500_000, 499_999)):
        inputs = batch_of(rows, 2)
        np.testing.assert_array_equal(worker.run(batch, inputs)["Y"], inputs["X"] + 1)
        np.testing.assert_array_equal(worker.run(batch + 100, inputs, slot=1)["Y"], inputs["X"] + 1)


def test_two_batches_may_wait_and_are_answered_in_order(worker: Worker) -> None:
    for batch in range(20):
        worker.send(2 * batch, batch_of(8_000, times=2), slot=0)
        worker.send(2 * batch + 1, batch_of(9_000, times=3), slot=1)
        first = worker.arrays(worker.receive(), 0)["Y"]
        second = worker.arrays(worker.receive(), 1)["Y"]
        np.testing.assert_array_equal(first, batch_of(8_000)["X"] + 2)
        np.testing.assert_array_equal(second, batch_of(9_000)["X"] + 3)


def test_a_wrong_batch_is_refused_and_the_next_one_runs(worker: Worker) -> None:
    worker.send(1, {"X": batch_of(2)["X"]})
    assert worker.receive() == Failed(1, "invalid", "missing input 'times'; the model expects times, X")
    truncated = Execute(2, 0, False, (Tensor("X", "FP32", (2, 2), 0, 8),), (), 8, bytes(8))
    worker.own.send(truncated)
    refused = worker.receive()
    assert isinstance(refused, Failed)
    assert (refused.batch, refused.kind) == (2, "invalid")
    assert "input 'X' (FP32 [2, 2])" in refused.message
    assert worker.run(3, batch_of(1))["Y"].tolist() == [[1.0]]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be left")
def test_a_worker_stays_on_one_core_while_others_run(start: Callable[[], Worker], loop: InstanceSpec) -> None:
    cores = os.sched_getaffinity(0)
    worker = start()
    worker.load(replace(loop, number=1, instances=len(cores)))
    found = []
    for batch, beside in enumerate((False, True, True, False)):
        worker.send(batch, batch_of(1), beside=beside)
        assert isinstance(worker.receive(), Executed)
        found.append(os.sched_getaffinity(worker.own.process.pid))
    assert found == [cores, {sorted(cores)[1]}, {sorted(cores)[1]}, cores]


def test_a_running_batch_is_cancelled(worker: Worker) -> None:
    worker.send(1, {**batch_of(1), "times": ENDLESS})
    worker.send(2, batch_of(1), slot=1)
    time.sleep(0.2)  # so that the loop runs; an earlier cancel must give the same answer
    worker.cancel(1)
    first = worker.receive()
    assert isinstance(first, Failed)
    assert (first.batch, first.kind) == (1, "cancelled")
    assert worker.arrays(worker.receive(), 1)["Y"].tolist() == [[1.0]]


def test_a_waiting_batch_is_cancelled_before_it_runs(worker: Worker) -> None:
    worker.send(1, {**batch_of(1), "times": ENDLESS})
    worker.send(2, {**batch_of(1), "times": ENDLESS}, slot=1)
    worker.cancel(2)
    worker.cancel(1)
    replies = [worker.receive(), worker.receive()]
    assert [(r.batch, r.kind) for r in replies if isinstance(r, Failed)] == [
        (1, "cancelled"),
        (2, "cancelled"),
    ]


def test_cancels_of_finished_batches_change_nothing(worker: Worker) -> None:
    for batch in range(200):
        worker.run(batch, batch_of(1))
        worker.cancel(batch)
    worker.send(200, {**batch_of(1), "times": ENDLESS})
    worker.cancel(200)
    reply = worker.receive()
    assert isinstance(reply, Failed)
    assert (reply.batch, reply.kind) == (200, "cancelled")
    assert worker.run(201, batch_of(1))["Y"].tolist() == [[1.0]]


def test_a_storm_of_cancels_harms_no_other_batch(worker: Worker) -> None:
    chances = np.random.default_rng(5)
    for batch in range(0, 600, 2):
        times = int(chances.integers(1, 400))
        for slot in (0, 1):
            worker.send(batch + slot, batch_of(1, times=times), slot=slot)
        worker.cancel(batch)
        first, second = worker.receive(), worker.receive()
        if isinstance(first, Failed):  # it may have ended before its cancel came
            assert (first.batch, first.kind) == (batch, "cancelled")
        else:
            assert worker.arrays(first)["Y"].tolist() == [[times]]
        assert worker.arrays(second, 1)["Y"].tolist() == [[times]]


def test_a_text_model_takes_token_ids(start: Callable[[], Worker], tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "last"], ["last_hidden_state"]),
        ],
        "text",
        [value("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [value("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 1])],
        [numpy_helper.from_array(np.array([-1], np.int64), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    worker = start()
    loaded = worker.load(InstanceSpec("text", "onnx", str(tmp_path), text=TextSpec("embed")))
    assert isinstance(loaded, Loaded)
    assert [spec.name for spec in loaded.inputs] == ["token_ids", "lengths"]
    inputs = {"token_ids": np.array([4, 6, 7], np.int32), "lengths": np.array([2, 1], np.int32)}
    assert worker.run(1, inputs, ["embedding"])["embedding"].tolist() == [[5.0], [7.0]]


def test_text_travels_both_ways(start: Callable[[], Worker], tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, ["rows", 2]) for name in "XY")
    graph = helper.make_graph([helper.make_node("Identity", ["X"], ["Y"])], "same", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    worker = start()
    assert isinstance(worker.load(InstanceSpec("same", "onnx", str(tmp_path))), Loaded)
    texts = np.array([["a", ""], ["dé", "long " * 9_000]], dtype=object)
    worker.send(1, {"X": texts})
    reply = worker.receive()
    assert isinstance(reply, Executed)
    assert reply.outputs[0].row_ends == (9, 9 + 4 + 3 + 4 + 45_000)
    result = worker.arrays(reply)["Y"]
    assert [[text.decode() for text in row] for row in result.tolist()] == texts.tolist()


def test_a_damaged_model_is_reported(start: Callable[[], Worker], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"this is no model")
    worker = start()
    reply = worker.load(InstanceSpec("damaged", "onnx", str(tmp_path)))
    assert isinstance(reply, LoadFailed)
    assert reply.message.startswith("ONNX Runtime cannot load 'model.onnx': ")
    assert "\n" not in reply.message
    assert worker.own.process.wait(REPLY_TIMEOUT_S) == 1


def test_the_socket_ends_the_worker_even_in_a_batch(worker: Worker) -> None:
    worker.send(1, {**batch_of(1), "times": ENDLESS})
    time.sleep(0.2)  # so that the loop runs
    assert worker.own.close() == 0


def test_ctrl_c_is_for_the_server_only(worker: Worker) -> None:
    worker.own.process.send_signal(signal.SIGINT)
    assert worker.run(1, batch_of(1))["Y"].tolist() == [[1.0]]


def test_a_killed_worker_closes_its_socket(worker: Worker) -> None:
    worker.send(1, {**batch_of(1), "times": ENDLESS})
    worker.own.process.kill()
    with pytest.raises((EOFError, ConnectionResetError)):
        worker.receive()
    assert worker.own.process.wait(REPLY_TIMEOUT_S) == -signal.SIGKILL


def test_the_process_is_named_after_the_model(worker: Worker) -> None:
    assert worker.proc("comm").read_text().strip() == "hr:loop"


def test_a_thousand_batches_leave_nothing_behind(worker: Worker) -> None:
    def footprint() -> tuple[int, int]:
        return len(list(worker.proc("fd").iterdir())), len(worker.proc("maps").read_text().splitlines())

    for batch in range(100):
        worker.run(batch, batch_of(10_000), slot=batch % 2)
    descriptors, maps = footprint()
    for batch in range(100, 1100):
        worker.run(batch, batch_of(10 + batch % 2 * 9_000), slot=batch % 2)
    assert footprint()[0] == descriptors
    assert footprint()[1] <= maps + 8  # the allocator may map an arena more
