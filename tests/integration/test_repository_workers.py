# ruff: noqa: E501 - one line of a message a line
"""The repository with real worker processes: what is loaded, replaced and ended while requests run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from waiting import until

from headrace.runtimes.convert.arithmetic import addsub_graph, save
from headrace.server.errors import LoadFailedError
from headrace.server.repository.check import check
from headrace.server.repository.factory import RunningModels
from headrace.server.repository.instances import Machine
from headrace.server.repository.model import Task
from headrace.server.repository.registry import Repository
from headrace.server.scheduling.work import Part, PartInput
from headrace.server.tasks.batching import batcher_of
from headrace.server.workers.supervised import RestartPolicy

NO_RESTARTS = RestartPolicy(attempts=0)


def write_addsub(root: Path, config: str = "", name: str = "addsub") -> Path:
    """Write an addsub model that batches, with ``config`` as its config.pbtxt. Returns its file."""
    file = root / name / "1" / "model.onnx"
    save(file, addsub_graph(batched=True))
    (root / name / "config.pbtxt").write_text(config)
    return file


@asynccontextmanager
async def serve(
    *roots: Path, cores: int = 2, **settings: Any
) -> AsyncIterator[tuple[Repository, RunningModels]]:
    factory = RunningModels(1024, NO_RESTARTS)
    repository = Repository(roots, factory, Machine(cores), **settings)
    await repository.start()
    try:
        yield repository, factory
    finally:
        await repository.stop()


async def addsub(repository: Repository, value: int) -> bool:
    """Ask the model that the repository has now, and tell whether its answer is right."""
    model = repository.get("addsub")
    left, right = np.full((1, 16), value, np.int32), np.arange(16, dtype=np.int32).reshape(1, 16)
    inputs = [PartInput(f"INPUT{i}", "INT32", (1, 16), x.tobytes()) for i, x in enumerate((left, right))]
    await asyncio.sleep(0.001)  # what tokenising would take: the model may be replaced meanwhile
    (result,) = await batcher_of(model).run([Part(inputs, key="addsub")])
    return bool((np.frombuffer(result["OUTPUT0"].data, np.int32) == (left + right).ravel()).all())


async def test_requests_never_notice_a_reload(tmp_path: Path) -> None:
    write_addsub(tmp_path, "instance_group { count: 1 }")
    async with serve(tmp_path) as (repository, _):
        answers: list[bool] = []
        running = True

        async def ask(value: int) -> None:
            while running:
                answers.append(await addsub(repository, value))

        clients = [asyncio.create_task(ask(value)) for value in range(4)]
        old: set[int] = set()
        for size in (2, 3, 4):
            old.update(worker_pids())
            write_addsub(tmp_path, f"instance_group {{ count: 1 }} max_batch_size: {size}")
            await repository.load("addsub")
            assert repository.get("addsub").max_batch_size == size
            answered = len(answers)
            await until(lambda answered=answered: len(answers) > answered + 20)  # type: ignore[misc]
        running = False
        await asyncio.gather(*clients)
        assert all(answers)
        await until(lambda: not old & set(worker_pids()))
        assert len(worker_pids()) == 1
    assert worker_pids() == []


async def test_unload_lets_running_requests_finish(identity_repository: Path) -> None:
    async with serve(identity_repository, load_models=["slow"]) as (repository, _):
        model = repository.get("slow")
        spec = model.inputs[0]
        dims = [1 if size == -1 else size for size in spec.dims]
        shape = (1, *dims) if model.batching else tuple(dims)
        data = np.ones(shape, np.float32).tobytes()
        part = Part([PartInput(spec.name, spec.datatype, shape, data)], key="slow")
        running = asyncio.create_task(batcher_of(model).run([part]))
        await until(lambda: part.batch is not None)
        del model
        await repository.unload("slow")
        assert not repository.is_ready("slow", "")
        assert repository.index(ready=False)[-1].state in ("UNLOADING", "UNAVAILABLE")
        ((name, _),) = (await running)[0].items()
        assert name
        await until(lambda: worker_pids() == [])
        await until(
            lambda: ("slow", "1", "UNAVAILABLE", "unloaded") in map(tuple, repository.index(ready=False))
        )


async def test_reasons_of_real_workers(tmp_path: Path) -> None:
    write_addsub(tmp_path, name="broken").write_bytes(b"these are no weights")
    write_addsub(
        tmp_path,
        'max_batch_size: 8 input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 8 ] } '
        'output { name: "SUM" data_type: TYPE_INT32 dims: [ 16 ] }',
        name="misfit",
    )
    async with serve(tmp_path, load_models=[]) as (repository, _):
        with pytest.raises(LoadFailedError) as caught:
            await repository.load("broken")
        assert caught.value.message.startswith(
            "load failed for model 'broken': version 1 is at UNAVAILABLE state: Internal: ONNX Runtime cannot load"
        )
        with pytest.raises(LoadFailedError) as caught:
            await repository.load("misfit")
        for line in (
            "misfit/config.pbtxt does not fit the model:",
            "  input 'INPUT0'.data_type: is TYPE_FP32, but the model has TYPE_INT32",
            "  input 'INPUT0'.dims: is [8], which with a batch stands for [-1,8], but the model has [-1,16]",
            "  output 'SUM': the model has no such output; it has 'OUTPUT0' INT32 [-1,16], 'OUTPUT1' INT32 [-1,16]",
            "  input: 'INPUT1' INT32 [-1,16] of the model is missing",
        ):
            assert line in caught.value.message.replace("Internal: ", "\n").splitlines()
        assert str(tmp_path) not in caught.value.message
        printed = caught.value.message.partition("This config.pbtxt fits:\n")[2].removesuffix(";\n")
        (tmp_path / "misfit" / "config.pbtxt").write_text(printed)
        await repository.load("misfit")
        assert repository.get("misfit").max_batch_size == 8
    assert worker_pids() == []


async def test_a_model_whose_worker_cannot_live_is_withdrawn(tmp_path: Path) -> None:
    write_addsub(tmp_path, "instance_group { count: 1 }")
    async with serve(tmp_path) as (repository, _):
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not repository.all_ready())
        (entry,) = repository.index(ready=False)
        assert (entry.version, entry.state) == ("1", "UNAVAILABLE")
        assert entry.reason.startswith("Internal: ")
        await repository.load("addsub")
        assert await addsub(repository, 3)


def link(source: Path, target: Path, names: Sequence[str]) -> None:
    """Put files of the demo repository into a folder without copying their content."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


HF_FILES = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
)


@pytest.mark.parametrize(
    ("model", "weights", "platform"),
    [
        ("minilm", "model.onnx", "onnxruntime_onnx"),
        pytest.param("minilm-torch", "model.safetensors", "pytorch_libtorch", marks=pytest.mark.slow),
    ],
)
async def test_a_plain_hugging_face_folder_is_served(
    demo_repository: Path, tmp_path: Path, model: str, weights: str, platform: str
) -> None:
    link(demo_repository / model / "1", tmp_path / "hf", [*HF_FILES, weights])
    async with serve(tmp_path, cores=1) as (repository, _):
        served = repository.resolve("", Task.EMBED)
        assert (served.name, served.version, served.platform) == ("hf", 1, platform)
        assert served.dimensions == 384
        assert served.text is not None
        ids = served.text.tokenizer.encode("a small test").ids
        vector = await embed(served, ids)
        same = await embed(served, ids)
        other = await embed(served, served.text.tokenizer.encode("something else entirely, in a stream").ids)
        assert vector.shape == (384,)
        assert cosine(vector, same) > 0.9999
        assert cosine(vector, other) < 0.9


async def embed(model: Any, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    count = len(ids)
    inputs = [
        PartInput("token_ids", "INT32", (count,), np.asarray(ids, np.int32).tobytes()),
        PartInput("lengths", "INT32", (1,), count.to_bytes(4, "little")),
    ]
    (result,) = await batcher_of(model).run([Part(inputs, outputs=("embedding",), tokens=count, key="embed")])
    return np.frombuffer(result["embedding"].data, np.float32)


def cosine(left: Any, right: Any) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.mark.slow
async def test_the_demo_repository_checks_out(demo_repository: Path) -> None:
    results = await check(demo_repository, RunningModels(1024, NO_RESTARTS), Machine(2))
    assert {result.name: result.text for result in results if not result.ok} == {}
    assert {"addsub", "minilm", "sentiment", "iris"} <= {result.name for result in results}


def worker_pids() -> list[int]:
    """Return the worker processes that this test has now; those of a server's are not our own children."""
    found = []
    for child in psutil.Process().children():
        try:
            if "headrace.runtimes.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def test_reshaped_tensors_reach_the_model_in_its_own_shape(tmp_path: Path) -> None:
    write_addsub(
        tmp_path,
        'max_batch_size: 4 input { name: "INPUT0" data_type: TYPE_INT32 dims: [ 4, 4 ] reshape { shape: [ 16 ] } } '
        'input { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } '
        'output { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 2, 8 ] reshape { shape: [ 16 ] } }',
    )
    async with serve(tmp_path, cores=1) as (repository, _):
        model = repository.get("addsub")
        data = np.arange(32, dtype=np.int32).tobytes()
        given = {"INPUT0": (2, 4, 4), "INPUT1": (2, 16)}
        inputs = [
            PartInput(spec.name, spec.datatype, spec.model_shape(given[spec.name], batching=True), data)
            for spec in model.inputs
        ]
        (result,) = await batcher_of(model).run([Part(inputs, outputs=("OUTPUT0",), rows=2, key="reshaped")])
        assert result["OUTPUT0"].shape == (2, 16)
        assert model.outputs[0].caller_shape(result["OUTPUT0"].shape, batching=True) == (2, 2, 8)
