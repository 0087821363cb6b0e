"""Fused attention of ONNX text encoders: what is fused, what is kept, and that nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exported_encoders import (
    Encoder,
    expected,
    hidden_states,
    instance,
    outcome,
    served_file,
    write_encoder,
)
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import FAMILIES

from headrace.runtimes.base import Run
from headrace.runtimes.onnx import child
from headrace.runtimes.onnx.encoder_facts import EncoderFacts, find_config, read_facts
from headrace.runtimes.onnx.fusion import fused_entry, wants_fusion
from headrace.runtimes.onnx.fusion_check import DifferentGraphsError, compare
from headrace.runtimes.onnx.operators import available
from headrace.runtimes.onnx.options import CPU
from headrace.runtimes.onnx.session import OnnxModel, load
from headrace.runtimes.worker import load as load_as_worker
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.preparation import prepare

KNOWN_TO_THE_OPTIMISER = {"bert", "roberta", "xlm-roberta", "distilbert"}
WORDS = 40_000
"""A vocabulary that makes a tiny encoder large enough to be fused when it is loaded: 5 MB."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return write_encoder(tmp_path_factory.mktemp("fusion") / "bert", "bert", vocab_size=WORDS)


@pytest.fixture(scope="module")
def fused(bert: Encoder) -> Path:
    """A cache folder with the fused graph."""
    cache = bert.graph.parent.parent / "graphs"
    assert fused_entry(bert.graph, cache) is not None
    return cache


def graphs(cache: Path) -> list[Path]:
    """The fused graph, and after it its form with our operators, if any, and the packed one."""
    return sorted(cache.glob("*.onnx"))


def marks(cache: Path) -> list[tuple[str, int, int]]:
    """What tells whether any file was written again; the time of a record is that of the last load."""
    return sorted(
        (file.name, file.stat().st_ino, 0 if file.suffix == ".json" else file.stat().st_mtime_ns)
        for file in cache.iterdir()
    )


def attention_nodes(graph: Path) -> dict[str, int]:
    found = Counter(node.op_type for node in onnx.load(str(graph)).graph.node)
    return {name: count for name, count in found.items() if "Attention" in name}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """What the optimiser knows is fused, the rest stays as it is; the vectors are those of Torch."""
    made = write_encoder(tmp_path / "model", family)
    entry = fused_entry(made.graph, tmp_path / "graphs", pad_id=made.pad_id, smallest=0)
    assert (entry is not None) == (family in KNOWN_TO_THE_OPTIMISER), outcome(tmp_path / "graphs")["text"]
    if entry is not None:
        assert attention_nodes(entry.graph) == {"Attention": 2}
        assert attention_nodes(entry.packed) == {"MultiHeadAttention": 2}
        for graph in (entry.graph, entry.packed):
            session = ort.InferenceSession(str(graph), providers=[CPU])
            found = hidden_states(OnnxModel(session, None, {}), made.pad_id)
            for one, other in zip(found, expected(made.model), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_loaded_encoder_uses_the_fused_graph(bert: Encoder, fused: Path) -> None:
    before = marks(fused)
    loaded = load(instance(bert, fused, lone_threads=2))
    plain, packed = graphs(fused)
    assert served_file(loaded) == packed
    assert loaded.padding == "attention"
    assert attention_nodes(packed) == {"MultiHeadAttention": 2}
    assert attention_nodes(bert.graph) == {}
    for one, other in zip(hidden_states(loaded, 0), expected(bert.model), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert loaded._load_lone is not None
    # a batch that runs alone has many threads, which would wait while tokens are laid out
    assert Path(loaded._load_lone()._model_path) == plain
    assert marks(fused) == before  # nothing was made again
    assert "2 attention operators" in outcome(fused)["text"]
    assert "packed" in outcome(fused)["text"]


def test_when_graphs_run_as_they_are(bert: Encoder, tmp_path: Path) -> None:
    spec = instance(bert, tmp_path / "graphs")
    assert wants_fusion(spec, [CPU])
    for other in (
        replace(spec, graph_cache=""),
        replace(spec, text=None),
        replace(spec, options={"optimization.graph.level": "2"}),
    ):
        assert not wants_fusion(other, [CPU])
        assert served_file(load(other)) == bert.graph
    assert not wants_fusion(spec, [("CUDAExecutionProvider", {"device_id": "0"}), CPU])
    assert fused_entry(bert.graph, tmp_path / "graphs", smallest=1 << 30) is None
    assert not (tmp_path / "graphs").exists()


def test_a_damaged_graph_is_not_served_and_made_again(
    bert: Encoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "graphs"
    entry = fused_entry(bert.graph, cache)
    assert entry is not None
    for damaged in (entry.packed, entry.graph):
        size = damaged.stat().st_size
        damaged.write_bytes(b"\0" * size)
        loaded = load(instance(bert, cache, lone_threads=2))
        if damaged == entry.packed:
            assert served_file(loaded) == bert.graph
            assert loaded.padding == "all"
        else:
            assert loaded._load_lone is not None
            assert Path(loaded._load_lone()._model_path) == bert.graph
        assert "a plainer one serves" in capfd.readouterr().err
        assert served_file(load(instance(bert, cache))) == entry.packed
        # Half a file is noticed before it is loaded.
        os.truncate(damaged, size // 2)
        assert fused_entry(bert.graph, cache) is not None
        assert damaged.stat().st_size == size


def test_of_two_at_once_one_makes_the_graph(bert: Encoder, tmp_path: Path) -> None:
    cache = tmp_path / "graphs"

    def made(_: int) -> tuple[int, int]:
        entry = fused_entry(bert.graph, cache)
        assert entry is not None
        status = entry.graph.stat()
        return status.st_ino, status.st_mtime_ns

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(made, range(2))
    assert first == second


def test_a_worker_that_has_ended_gets_no_graph(bert: Encoder, tmp_path: Path) -> None:
    run = [
        sys.executable,
        "-m",
        "headrace.runtimes.onnx.fusing",
        str(bert.graph),
        str(tmp_path / "fused.onnx"),
    ]
    done = subprocess.run([*run, "--parent", "0"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert not list(tmp_path.iterdir())


def test_a_changed_model_replaces_its_graph(tmp_path: Path) -> None:
    made = write_encoder(tmp_path / "model", "bert")
    cache = tmp_path / "graphs"
    old = fused_entry(made.graph, cache, smallest=0)
    os.utime(made.graph, ns=(0, 0))
    new = fused_entry(made.graph, cache, smallest=0)
    assert old is not None
    assert new is not None
    assert graphs(cache) == [new.graph, new.packed]
    assert new.graph != old.graph


def test_the_graphs_of_a_model_that_is_gone_go_in_the_end(tmp_path: Path) -> None:
    made = {name: write_encoder(tmp_path / name, "bert") for name in ("gone", "lately", "last")}
    cache = tmp_path / "graphs"
    old, late = (fused_entry(made[name].graph, cache, smallest=0) for name in ("gone", "lately"))
    assert old is not None
    assert late is not None
    os.utime(old.graph.with_suffix(".json"), (0, 0))
    for name in ("gone", "lately"):
        made[name].graph.unlink()
    new = fused_entry(made["last"].graph, cache, smallest=0)
    assert new is not None
    assert graphs(cache) == sorted([late.graph, late.packed, new.graph, new.packed])


@pytest.mark.parametrize(
    ("element", "reason"),
    [(TensorProto.FLOAT, "no attention that the optimiser knows"), (TensorProto.FLOAT16, "FLOAT16")],
)
def test_what_cannot_be_fused_is_remembered(
    element: int, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = numpy_helper.from_array(np.ones((9, 2), helper.tensor_dtype_to_np_dtype(element)), "weights")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "width"])
    hidden = helper.make_tensor_value_info("hidden", element, ["rows", "width", 2])
    node = helper.make_node("Gather", ["weights", "input_ids"], ["hidden"])
    graph = helper.make_graph([node], "graph", [ids], [hidden], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(made, tmp_path / "model.onnx")
    cache = tmp_path / "graphs"
    assert fused_entry(tmp_path / "model.onnx", cache, smallest=0) is None
    assert reason in capfd.readouterr().err
    assert reason in outcome(cache)["text"]
    before = marks(cache)
    assert fused_entry(tmp_path / "model.onnx", cache, smallest=0) is None
    assert capfd.readouterr().err == ""
    assert marks(cache) == before


def test_what_was_killed_is_fused_an_hour_later(
    bert: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[child.End] = []

    def run(*_: object) -> child.End:
        ended.append(child.End(done=False, text="the process ended with -9", passing=True))
        return ended[-1]

    cache = tmp_path / "graphs"
    with monkeypatch.context() as patch:
        patch.setattr(child, "run", run)
        assert fused_entry(bert.graph, cache, smallest=0) is None
        assert fused_entry(bert.graph, cache, smallest=0) is None
    assert len(ended) == 1
    (record,) = cache.glob("*.json")
    os.utime(record, (time.time() - 3700,) * 2)
    assert fused_entry(bert.graph, cache, smallest=0) is not None


def test_a_cache_that_cannot_be_written(
    bert: Encoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert served_file(load(instance(bert, tmp_path / "file" / "graphs"))) == bert.graph
    assert "attention not fused" in capfd.readouterr().err


def test_graphs_that_compute_something_else_are_told_apart(
    bert: Encoder, fused: Path, tmp_path: Path
) -> None:
    facts = read_facts(find_config(bert.graph))
    assert (facts.heads, facts.width, facts.vocabulary, facts.positions) == (4, 32, WORDS, 40)
    assert compare(bert.graph, bert.graph, facts, 0) == 0.0
    changed = onnx.load(str(graphs(fused)[0]))
    nodes = [node for node in changed.graph.node if node.op_type == "Attention"]
    nodes[-1].input[3] = ""  # padding is attended to
    onnx.save(changed, tmp_path / "other.onnx")
    with pytest.raises(DifferentGraphsError, match="outputs differ by"):
        compare(bert.graph, tmp_path / "other.onnx", facts, 0)
    changed.graph.output[0].name = changed.graph.node[-1].output[0] = "renamed"
    onnx.save(changed, tmp_path / "other.onnx")
    with pytest.raises(DifferentGraphsError, match="changed"):
        compare(bert.graph, tmp_path / "other.onnx", facts, 0)


def test_facts_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "1" / "onnx").mkdir(parents=True)
    model = tmp_path / "1" / "onnx" / "model.onnx"
    assert find_config(model) is None
    assert read_facts(None) == EncoderFacts()
    config = tmp_path / "config.json"
    config.write_text('{"n_heads": 6, "dim": 48, "vocab_size": "many", "sliding_window": 512}')
    assert find_config(model) == config
    assert read_facts(config) == EncoderFacts(heads=6, width=48, windowed=True)
    config.write_text("[1]")
    assert read_facts(config) == EncoderFacts()


def test_the_demo_embedder_gives_the_same_vectors(demo_repository: Path, tmp_path: Path) -> None:
    machine = Machine(1, graph_cache=str(tmp_path))
    (definition,) = prepare(open_model("minilm", [demo_repository]), machine)
    spec = definition.specs[0]
    assert spec.graph_cache == str(tmp_path)
    random = np.random.default_rng(7)
    lengths = np.array([10, 60, 3, 200], np.int32)
    inputs = {"token_ids": random.integers(1000, 20000, lengths.sum(), np.int32), "lengths": lengths}
    vectors = []
    for one in (spec, replace(spec, graph_cache="")):
        model = load_as_worker(one)
        vectors.append(model.execute(inputs, ("embedding",), Run())["embedding"])
        model.close()
    forms = [{"Attention": 6}, {"Attention": 6}, {"MultiHeadAttention": 6}]
    if not available():
        del forms[1]
    assert [attention_nodes(graph) for graph in graphs(tmp_path)] == forms
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
