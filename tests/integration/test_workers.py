"""Real worker processes under the real batcher."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from waiting import until

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.datatypes import pack_bytes, unpack_bytes
from headrace.server.errors import (
    HeadraceError,
    LoadFailedError,
    TensorRefusedError,
    WorkerCrashedError,
)
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part, PartInput, PartOutput
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.workers.group import WorkerGroup
from headrace.server.workers.instance import Instance
from headrace.server.workers.supervised import RestartPolicy

FAST = RestartPolicy(initial_seconds=0.01, attempts=3)


class Served:
    """A running group and its batcher."""

    def __init__(self, group: WorkerGroup[Instance], batcher: Batcher, failures: list[str]) -> None:
        self.group = group
        self.batcher = batcher
        self.failures = failures

    async def addsub(self, value: int, rows: int = 1) -> bool:
        """Run one request and tell whether its answer is right."""
        a = np.full((rows, 16), value, np.int32)
        b = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
        inputs = [PartInput(f"INPUT{i}", "INT32", (rows, 16), x.tobytes()) for i, x in enumerate((a, b))]
        (result,) = await self.batcher.run([Part(inputs, rows=rows, key="addsub")])
        total, difference = (np.frombuffer(result[f"OUTPUT{i}"].data, np.int32) for i in range(2))
        return bool((total == (a + b).ravel()).all() and (difference == (a - b).ravel()).all())


@asynccontextmanager
async def serve(
    path: Path,
    *,
    count: int = 1,
    max_rows: int = 64,
    delay_us: int = 0,
    restarts: RestartPolicy = FAST,
    on_restart: Callable[[], None] = lambda: None,
) -> AsyncIterator[Served]:
    failures: list[str] = []
    statistics = ModelStatistics()
    spec = InstanceSpec(model=path.parent.name, runtime="onnx", path=str(path))

    def create(spec: InstanceSpec, failed: Callable[[str], None]) -> Instance:
        return Instance(spec, restarts, on_restart=on_restart, on_failed=failed)

    group = WorkerGroup([spec] * count, create, failures.append)
    await group.start()
    policy = BatchingPolicy(max_rows=max_rows, join=max_rows > 1, max_queue=20_000, delay_us=delay_us)
    batcher = Batcher(policy, statistics)
    for instance in group.instances:
        instance.attach(batcher)
    try:
        yield Served(group, batcher, failures)
    finally:
        await group.stop()


async def test_small_and_large_requests_give_right_answers(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1") as served:
        answers = await asyncio.gather(*(served.addsub(i, rows=1 + i % 7) for i in range(200)))
        assert all(answers)
        assert await served.addsub(1, rows=64 * 300)  # 1.2 MB per input: through the shared regions


async def test_what_the_model_refuses_is_told_from_what_was_refused_before_it(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1") as served:
        half = [PartInput("INPUT0", "INT32", (1, 16), bytes(64))]
        with pytest.raises(TensorRefusedError, match="missing input 'INPUT1'"):
            await served.batcher.run([Part(half, rows=1, key="half")])
        assert await served.addsub(1)


async def test_a_killed_worker_answers_what_ran_at_once_and_serves_the_rest_after_its_restart(
    demo_repository: Path,
) -> None:
    async with serve(demo_repository / "addsub" / "1", max_rows=1) as served:
        first = served.group.pids
        os.kill(first[0], signal.SIGSTOP)  # so that batches are with it when it dies
        tasks = [asyncio.ensure_future(served.addsub(i)) for i in range(20)]
        await until(lambda: served.group.instances[0].batches > 0)
        os.kill(first[0], signal.SIGKILL)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        crashed = [outcome for outcome in outcomes if isinstance(outcome, WorkerCrashedError)]
        assert len(crashed) == 1
        assert sum(outcome is True for outcome in outcomes) == 19
        assert served.group.pids != first


async def test_a_worker_that_keeps_dying_is_given_up_with_a_reason(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1") as served:
        deaths = 0
        while not served.failures:
            pids = served.group.pids
            if pids and psutil.pid_exists(pids[0]):
                os.kill(pids[0], signal.SIGKILL)
                deaths += 1
                while not served.failures and served.group.pids == pids:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
        assert served.failures == [f"the worker process died {FAST.attempts + 1} times in a row"]
        assert deaths == FAST.attempts + 1


async def test_a_model_that_cannot_be_loaded_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"this is not a graph")
    spec = InstanceSpec(model="broken", runtime="onnx", path=str(tmp_path))
    group = WorkerGroup(
        [spec],
        lambda spec, failed: Instance(spec, FAST, on_restart=lambda: None, on_failed=failed),
        lambda _: None,
    )
    with pytest.raises(LoadFailedError) as raised:
        await group.start()
    assert "model.onnx" in raised.value.message or "protobuf" in raised.value.message.lower()
    assert not [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "headrace.runtimes.worker" in child.cmdline()
    ]


async def test_ten_thousand_cancelled_requests_leave_nothing_behind(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1", count=2) as served:
        assert await served.addsub(1)

        async def burst(count: int) -> None:
            tasks = [asyncio.ensure_future(served.addsub(i)) for i in range(count)]
            for _ in range(3):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        for _ in range(5):
            await burst(1000)
        me, workers = psutil.Process(), [psutil.Process(pid) for pid in served.group.pids]
        before = [process.memory_info().rss for process in (me, *workers)]
        files = me.num_fds()
        for _ in range(10):
            await burst(1000)
        assert served.batcher.waiting == 0
        await until(
            lambda: served.batcher.active == 0 and all(i.batches == 0 for i in served.group.instances)
        )
        after = [process.memory_info().rss for process in (me, *workers)]
        assert all(late - early < 8 * 2**20 for early, late in zip(before, after, strict=True)), (
            before,
            after,
        )
        assert me.num_fds() == files
        assert not _shared_memory()
        assert await served.addsub(7)


def _shared_memory() -> list[Path]:
    return [entry for entry in Path("/dev/shm").iterdir() if "headrace" in entry.name]


async def test_a_running_batch_that_nobody_waits_for_is_stopped(identity_repository: Path) -> None:
    async with serve(identity_repository / "slow" / "1", max_rows=1) as served:
        loaded = served.group.instances[0]
        steps = PartInput("INPUT0", "INT32", (1, 1), np.ones((1, 1), np.int32).tobytes())
        task = asyncio.ensure_future(served.batcher.run([Part([steps])]))
        await until(lambda: loaded.batches == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: loaded.batches == 0)
        assert served.group.pids, "the worker was stopped in its batch, not killed"


async def test_stopping_ends_the_processes(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1", count=2) as served:
        pids = served.group.pids
        assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises((HeadraceError, asyncio.TimeoutError)):
        await asyncio.wait_for(served.addsub(1), 0.2)


def save(folder: Path, nodes: Sequence[onnx.NodeProto], datatype: int, *given: onnx.TensorProto) -> Path:
    """Save a graph from X to Y, both [rows] of ``datatype``."""
    inputs, outputs = ([helper.make_tensor_value_info(name, datatype, ["rows"])] for name in "XY")
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(given))
    path = folder / "model" / "1"
    path.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path / "model.onnx")
    return path


async def outcomes(
    served: Served, datatype: str, values: Sequence[bytes]
) -> list[dict[str, PartOutput] | BaseException]:
    """Have one request for each of ``values`` share a batch."""
    parts = [Part([PartInput("X", datatype, (1,), value)], key="k") for value in values]
    results = await asyncio.gather(*(served.batcher.run([one]) for one in parts), return_exceptions=True)
    return [result if isinstance(result, BaseException) else result[0] for result in results]


async def test_text_that_is_not_utf8_fails_its_own_request_only(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("Identity", ["X"], ["Y"])], TensorProto.STRING)
    texts = [b"a", b"\xff\xfe", "\u00e4".encode(), b""]
    async with serve(path, max_rows=8, delay_us=50_000) as served:
        found = await outcomes(served, "BYTES", [pack_bytes([text]) for text in texts])
        assert isinstance(found[1], TensorRefusedError)
        assert "not UTF-8" in found[1].message
        assert [unpack_bytes(found[i]["Y"].data) for i in (0, 2, 3)] == [[texts[i]] for i in (0, 2, 3)]  # type: ignore[index]


async def test_an_index_out_of_range_fails_its_own_request_only(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.arange(10, dtype=np.int64) * 3, "table")
    path = save(tmp_path, [helper.make_node("Gather", ["table", "X"], ["Y"])], TensorProto.INT64, table)
    async with serve(path, max_rows=8, delay_us=50_000) as served:
        values = [np.int64(value).tobytes() for value in (1, 2, 1000, 3)]
        found = await outcomes(served, "INT64", values)
        assert isinstance(found[2], TensorRefusedError)
        assert [np.frombuffer(found[i]["Y"].data, np.int64)[0] for i in (0, 1, 3)] == [3, 6, 9]  # type: ignore[index]


@contextmanager
def no_free_descriptors() -> Iterator[None]:
    """Let this process open no more files than it closes from now on."""
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] <= highest:
        taken.append(os.dup(taken[0]))
    try:
        with limited(resource.RLIMIT_NOFILE, taken[-1] + 1):
            yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """Take something away from this process."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


async def test_a_batch_that_cannot_be_sent_is_answered_and_the_instance_goes_on(
    demo_repository: Path,
) -> None:
    async with serve(demo_repository / "addsub" / "1") as served:
        for _ in range(3):  # more than the slots
            wrong = Part([PartInput("INPUT0", "INT32", (2**70, 16), bytes(64))], key="wrong")
            with pytest.raises(HeadraceError, match="could not be sent to the worker of model 'addsub'"):
                await served.batcher.run([wrong])
            with (
                limited(resource.RLIMIT_FSIZE, 2**16),
                pytest.raises(HeadraceError, match="could not be sent"),
            ):
                await served.addsub(1, rows=64 * 100)
        assert served.group.instances[0].batches == 0
        assert all(await asyncio.gather(*(served.addsub(i, rows=64 * 30) for i in range(6))))


async def test_a_result_that_cannot_be_read_is_answered(demo_repository: Path) -> None:
    async with serve(demo_repository / "addsub" / "1") as served:
        process = served.group.instances[0]._worker.process
        assert process is not None
        for region in process.outputs:
            region.close()
        with pytest.raises(HeadraceError, match="could not be received from the worker of model 'addsub'"):
            await served.addsub(1, rows=64 * 100)
        assert all([await served.addsub(i) for i in range(4)])


async def test_restarts_that_fail_for_want_of_anything_are_tried_again(demo_repository: Path) -> None:
    restarts: list[None] = []
    patient = RestartPolicy(initial_seconds=0.001, max_seconds=0.01, attempts=10_000)
    async with serve(
        demo_repository / "addsub" / "1", restarts=patient, on_restart=lambda: restarts.append(None)
    ) as served:
        assert await served.addsub(1)
        files = psutil.Process().num_fds()
        first = served.group.pids
        with no_free_descriptors():  # those of the dead worker are six; to start one takes ten
            os.kill(first[0], signal.SIGKILL)
            waiting = asyncio.ensure_future(served.addsub(2))
            await until(lambda: len(restarts) > 5)
            assert not served.group.pids
            assert not served.failures
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        assert outcome is True or isinstance(outcome, WorkerCrashedError)
        await until(lambda: served.group.pids)
        assert await served.addsub(3)
        assert psutil.Process().num_fds() <= files
