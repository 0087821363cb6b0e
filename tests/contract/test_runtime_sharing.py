"""Weights of ONNX models that all sessions share: what is kept, and that nothing else changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.base import InstanceSpec, Run
from headrace.runtimes.onnx import preparing, sharing
from headrace.runtimes.onnx.preparing import GRAPH, WEIGHTS
from headrace.runtimes.onnx.session import OnnxModel, load
from headrace.runtimes.worker import load as load_as_worker
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.preparation import prepare

WIDTH = 1024
ROWS = np.random.default_rng(3).random((5, WIDTH), np.float32)


def write_model(file: Path, *, seed: int = 1, split: bool = False) -> Path:
    """Two matrices of 4 MB each; with ``split`` one, and 3 rows are all that it takes."""
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.random((WIDTH, WIDTH), np.float32) - 0.5, name) for name in ("v", "w")
    ]
    weights.append(numpy_helper.from_array(random.random(WIDTH, np.float32), "b"))
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    if split:
        weights.append(numpy_helper.from_array(np.array([3, -1]), "shape"))
        nodes[3] = helper.make_node("Reshape", ["d", "shape"], ["y"])
    graph = helper.make_graph(
        nodes,
        "sharing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if split else ["rows", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(file))
    return file


@pytest.fixture
def spec(tmp_path: Path) -> InstanceSpec:
    file = write_model(tmp_path / "model" / "model.onnx")
    return InstanceSpec("wide", "onnx", str(file), weight_cache=str(tmp_path / "shared"))


def shared(spec: InstanceSpec) -> list[Path]:
    """Folders of prepared graphs."""
    return sorted(path for path in Path(spec.weight_cache).glob("*") if path.is_dir())


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def served_file(model: OnnxModel) -> Path:
    return Path(model._session._model_path)


def run(model: OnnxModel, rows: NDArray[np.float32] = ROWS, *, lone: bool = False) -> NDArray[Any]:
    return model.execute({"x": rows}, (), Run(lone=lone))["y"]


def lone_file(model: OnnxModel) -> Path:
    """The graph of the session for batches that run alone, which the first one has loaded beside it."""
    run(model, lone=True)
    for thread in threading.enumerate():
        if thread.name == "lone-session":
            thread.join(60)
    assert model._lone is not None
    return Path(model._lone._model_path)


def mapped(file: Path) -> dict[str, int]:
    """Kilobytes by kind of all that this process has mapped of a file."""
    total: Counter[str] = Counter()
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        head, _, rest = block.partition("\n")
        if head.endswith(str(file)):
            total.update({name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", rest)})
    return total


def test_weights_are_read_from_one_file_and_outputs_stay_the_same(spec: InstanceSpec) -> None:
    plain, model, again = load(replace(spec, weight_cache="")), load(spec), load(spec)
    (folder,) = shared(spec)
    assert served_file(model) == served_file(again) == folder / GRAPH
    np.testing.assert_array_equal(run(model), run(plain))
    np.testing.assert_array_equal(run(again), run(plain))
    sizes = {name: (folder / name).stat().st_size for name in (GRAPH, WEIGHTS)}
    assert sizes[WEIGHTS] > 2 * WIDTH * WIDTH * 4
    assert {name: record(folder)[key] for name, key in ((GRAPH, "graph"), (WEIGHTS, "weights"))} == sizes
    found = mapped(folder / WEIGHTS)
    assert found["Rss"] > WIDTH * WIDTH * 4 // 1024
    assert (found["Private_Dirty"], found["Anonymous"]) == (0, 0)


def test_what_is_kept_is_used_again_whatever_the_threads(spec: InstanceSpec) -> None:
    load(spec)
    (folder,) = shared(spec)
    before = [(file.name, file.stat().st_ino) for file in sorted(folder.iterdir())]
    model = load(replace(spec, threads=2, lone_threads=3))
    assert served_file(model) == folder / GRAPH
    assert lone_file(model) == folder / GRAPH
    np.testing.assert_allclose(run(model, lone=True), run(model), rtol=1e-5)
    assert shared(spec) == [folder]
    assert [(file.name, file.stat().st_ino) for file in sorted(folder.iterdir())] == before


def test_another_model_file_or_other_options_replace_it(spec: InstanceSpec) -> None:
    load(spec)
    (first,) = shared(spec)
    write_model(Path(spec.path), seed=2)
    model = load(spec)
    (second,) = shared(spec)
    assert second != first
    np.testing.assert_array_equal(run(model), run(load(replace(spec, weight_cache=""))))
    load(replace(spec, options={"session.disable_prepacking": "1"}))
    (third,) = shared(spec)
    assert third not in (first, second)


def test_what_was_made_of_models_that_are_gone_goes_in_the_end(spec: InstanceSpec, tmp_path: Path) -> None:
    def loaded(name: str, days: float, *, gone: bool) -> Path:
        before = shared(spec)
        model = write_model(tmp_path / name / "model.onnx", seed=len(before))
        load(replace(spec, path=str(model)))
        (folder,) = set(shared(spec)) - set(before)
        past = time.time() - days * 24 * 3600
        os.utime(folder / "outcome.json", (past, past))
        if gone:
            shutil.rmtree(model.parent)
        return folder

    abandoned = loaded("abandoned", 8, gone=True)
    kept = [loaded("moved lately", 6, gone=True), loaded("served for long", 800, gone=False)]
    damaged = loaded("damaged", 8, gone=True)
    (damaged / "outcome.json").write_text("[]")
    # one that is found when a model is loaded counts as used
    again = loaded("loaded again", 8, gone=False)
    load(replace(spec, path=str(tmp_path / "loaded again" / "model.onnx")))
    shutil.rmtree(tmp_path / "loaded again")

    load(spec)
    left = shared(spec)
    assert abandoned not in left
    assert {*kept, damaged, again} < set(left)
    assert len(left) == 5


def test_machines_with_other_processors_keep_their_own(
    spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(spec)
    (first,) = shared(spec)
    monkeypatch.setattr(sharing, "_processor", lambda: "another")
    load(spec)
    assert len(shared(spec)) == 2
    monkeypatch.undo()
    assert served_file(load(spec)) == first / GRAPH


def test_many_who_ask_at_once_get_what_one_of_them_makes(spec: InstanceSpec) -> None:
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(load, [spec] * 4))
    (folder,) = shared(spec)
    assert {served_file(model) for model in models} == {folder / GRAPH}


def test_a_file_that_was_cut_off_is_made_again(spec: InstanceSpec) -> None:
    load(spec).close()
    (folder,) = shared(spec)
    weights = folder / WEIGHTS
    size = weights.stat().st_size
    weights.unlink()
    weights.write_bytes(b"short")
    model = load(spec)
    assert served_file(model) == folder / GRAPH
    assert weights.stat().st_size == size


def test_a_file_that_cannot_be_loaded_is_dropped(
    spec: InstanceSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    load(spec).close()
    (folder,) = shared(spec)
    graph = folder / GRAPH
    content = bytes(graph.stat().st_size)
    graph.unlink()
    graph.write_bytes(content)
    model = load(spec)
    assert served_file(model) == Path(spec.path)
    assert "a plainer one serves" in capfd.readouterr().err
    assert shared(spec) == []
    assert served_file(load(spec)) == graph


def test_a_graph_that_cannot_be_tried_is_served_as_it_is_and_not_tried_again(
    spec: InstanceSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(Path(spec.path), split=True)
    for said in (1, 0):
        model = load(spec)
        assert served_file(model) == Path(spec.path)
        assert capfd.readouterr().err.count("no inputs were found on which it could be tried") == said
    (folder,) = shared(spec)
    assert [file.name for file in folder.iterdir()] == ["outcome.json"]
    assert (record(folder)["graph"], record(folder)["weights"]) == (0, 0)
    assert run(model, ROWS[:3]).shape == (3, WIDTH)


def test_what_failed_for_a_passing_reason_is_tried_again_later(
    spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A module of the child's name kills itself, as the kernel does where memory runs out."""
    modules = Path(spec.path).parent.parent / "modules"
    modules.mkdir()
    (modules / "killed.py").write_text(
        "import os, sys, tempfile\n"
        "open(tempfile.mkdtemp(dir=sys.argv[2]) + '/half', 'w').write('x' * 1000)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(modules))
        patch.setattr(sharing, "_CHILD", "killed")
        for said in (1, 0):
            assert served_file(load(spec)) == Path(spec.path)
            assert capfd.readouterr().err.count("the process ended with -9") == said
    (folder,) = shared(spec)
    assert [file.name for file in folder.iterdir()] == ["outcome.json"]
    assert served_file(load(spec)) == Path(spec.path)
    hour_ago = time.time() - 3700
    os.utime(folder / "outcome.json", (hour_ago, hour_ago))
    assert served_file(load(spec)) == folder / GRAPH


@pytest.mark.parametrize(
    "change",
    [{"weight_cache": ""}, {"options": {"optimization.graph.level": "2"}}],
    ids=["no folder", "no optimisation"],
)
def test_weights_are_not_shared(spec: InstanceSpec, change: dict[str, Any]) -> None:
    assert served_file(load(replace(spec, **change))) == Path(spec.path)
    assert shared(spec) == []


def test_small_models_are_not_worth_a_file(spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SMALLEST", 9 << 20)
    assert served_file(load(spec)) == Path(spec.path)
    assert not Path(spec.weight_cache).exists()


def test_a_full_disk_or_a_folder_that_is_none_costs_nothing_but_a_line(
    spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert served_file(load(spec)) == Path(spec.path)
    assert "bytes left in" in capfd.readouterr().err
    assert shared(spec) == []
    monkeypatch.undo()
    file = Path(spec.path).parent / "file"
    file.write_text("")
    assert served_file(load(replace(spec, weight_cache=str(file / "shared")))) == Path(spec.path)
    assert "do not share weights" in capfd.readouterr().err


def test_what_computes_something_else_is_not_kept(
    spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(spec.path).parent
    monkeypatch.setattr(preparing, "_same", lambda *_: False)
    with pytest.raises(preparing.NotPreparedError, match="computes something else"):
        preparing.prepare(Path(spec.path), folder, {})


def test_equal_means_equal() -> None:
    ones = np.ones((2, 3), np.float32)
    assert preparing._same(ones, ones + np.float32(1e-7))
    assert not preparing._same(ones, ones + np.float32(1e-4))
    assert not preparing._same(ones, ones[:1])
    assert not preparing._same(ones, ones.astype(np.float64))
    assert preparing._same(ones * np.nan, ones * np.nan)
    assert not preparing._same(np.array([1, 2]), np.array([1, 3]))
    assert preparing._same(np.array(["a"], object), np.array(["a"], object))


def test_the_child_ends_with_the_worker_that_wants_it(spec: InstanceSpec) -> None:
    command = [
        sys.executable,
        "-m",
        "headrace.runtimes.onnx.preparing",
        spec.path,
        "nowhere",
        "--parent",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_demo_encoder_gives_the_same_vectors(demo_repository: Path, tmp_path: Path) -> None:
    machine = Machine(2, graph_cache=str(tmp_path), weight_cache=str(tmp_path / "shared"))
    (definition,) = prepare(open_model("minilm", [demo_repository]), machine)
    spec = definition.specs[0]
    assert spec.weight_cache == machine.weight_cache
    random = np.random.default_rng(7)
    lengths = np.array([10, 60, 3, 200], np.int32)
    inputs = {"token_ids": random.integers(1000, 20000, lengths.sum(), np.int32), "lengths": lengths}
    vectors = []
    for one in (spec, replace(spec, weight_cache=""), replace(spec, graph_cache="", weight_cache="")):
        model = load_as_worker(one)
        vectors.append(model.execute(inputs, ("embedding",), Run())["embedding"])
        model.close()
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert [record(folder)["model"] for folder in shared(spec)] == [spec.path]
