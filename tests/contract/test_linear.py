"""The operator for linear layers of decoders, beside ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.onnx import linear, operators
from headrace.runtimes.onnx.options import CPU, GRAPH_LEVEL, LEVEL_OFF, THREADS

OPTIONS = {THREADS: "2"}
AVX2 = "avx2" in Path("/proc/cpuinfo").read_text()
needs_operator = pytest.mark.skipif(not AVX2, reason="the operators are for AVX2 and AVX-512")


def save(folder: Path, terms: int, columns: int, *, external: bool = True) -> Path:
    """Write a graph with a layer of [terms, columns], one whose weights are transposed, and an embedding."""
    random = np.random.default_rng(terms * columns)
    weights = random.standard_normal((terms, columns)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "plain"], ["y"]),
        helper.make_node("FusedMatMul", ["x", "table"], ["z"], domain="com.microsoft", transB=1),
        helper.make_node("Gather", ["table", "row"], ["embedded"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", terms]),
        helper.make_tensor_value_info("row", TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z", "embedded")
    ]
    constants = [
        numpy_helper.from_array(weights, "plain"),
        numpy_helper.from_array(weights.T.copy(), "table"),
    ]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    file = folder / "model.onnx"
    onnx.save(model, str(file), save_as_external_data=external, location="model.onnx.data", size_threshold=0)
    return file


def plain(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(file), providers=[CPU])


def answers(session: ort.InferenceSession, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [np.asarray(each) for each in session.run(None, {"x": x, "row": np.array([1])})]


@needs_operator
@pytest.mark.parametrize("terms", [1, 33, 256, 257, 576, 1536])
@pytest.mark.parametrize("columns", [32, 96, 2080])
def test_sums_are_those_of_onnx_runtime_to_the_bit(tmp_path: Path, terms: int, columns: int) -> None:
    file = save(tmp_path, terms, columns)
    ours, theirs = linear.load_linear(file, OPTIONS, [CPU]), plain(file)
    assert ours is not None
    random = np.random.default_rng(0)
    for batch, rows in [(1, 1), (2, 1), (7, 1), (1, 12), (13, 1), (1, 25), (3, 32), (1, 130), (0, 1)]:
        x = random.standard_normal((batch, rows, terms)).astype(np.float32)
        for mine, other in zip(answers(ours, x), answers(theirs, x), strict=True):
            assert mine.shape == other.shape
            np.testing.assert_array_equal(mine, other)


@needs_operator
def test_values_that_are_not_finite_stay_in_their_rows(tmp_path: Path) -> None:
    file = save(tmp_path, 64, 64)
    ours = linear.load_linear(file, OPTIONS, [CPU])
    assert ours is not None
    x = np.ones((3, 1, 64), np.float32)
    x[1, 0, 5] = np.nan
    y = answers(ours, x)[0]
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@needs_operator
@pytest.mark.parametrize("external", [True, False], ids=["external", "inline"])
def test_weights_are_found_wherever_they_lie(tmp_path: Path, *, external: bool) -> None:
    file = save(tmp_path, 64, 96, external=external)
    ours = linear.load_linear(file, OPTIONS, [CPU])
    assert ours is not None
    x = np.ones((2, 3, 64), np.float32)
    for mine, other in zip(answers(ours, x), answers(plain(file), x), strict=True):
        np.testing.assert_array_equal(mine, other)


@needs_operator
def test_an_operator_outlives_the_session_that_brought_it(tmp_path: Path) -> None:
    file = save(tmp_path, 64, 32)
    first, second = (linear.load_linear(file, OPTIONS, [CPU]) for _ in range(2))
    assert first is not None
    assert second is not None
    del first
    x = np.ones((2, 1, 64), np.float32)
    np.testing.assert_array_equal(answers(second, x)[0], answers(plain(file), x)[0])


def test_panels_have_the_columns_side_by_side() -> None:
    weights = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    laid_out = operators.panels(weights)
    assert laid_out.shape == (2, 3, 32)
    np.testing.assert_array_equal(laid_out[1, 2], weights[2, 32:])
    np.testing.assert_array_equal(operators.panels(weights.T.copy(), transposed=True), laid_out)


@pytest.mark.parametrize(
    ("columns", "options", "providers"),
    [
        (48, OPTIONS, [CPU]),
        (64, {**OPTIONS, GRAPH_LEVEL: LEVEL_OFF}, [CPU]),
        (64, OPTIONS, ["CUDAExecutionProvider", CPU]),
    ],
    ids=["columns that fill no panel", "graphs as they are", "a device"],
)
def test_what_is_left_to_onnx_runtime(
    tmp_path: Path, columns: int, options: dict[str, str], providers: list[str]
) -> None:
    assert linear.load_linear(save(tmp_path, 64, columns), options, providers) is None


@pytest.mark.parametrize("found", [lambda name: None, lambda name: ort if name == "onnx" else None])
def test_without_the_library_or_onnx_nothing_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Callable[[str], object]
) -> None:
    monkeypatch.setattr(operators, "find_spec", found)
    assert linear.load_linear(save(tmp_path, 64, 64), OPTIONS, [CPU]) is None


def test_a_library_that_cannot_be_loaded_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path, 64, 64)
    monkeypatch.setattr(operators, "find_spec", lambda name: ModuleSpec(name, None, origin=str(file)))
    assert linear.load_linear(file, OPTIONS, [CPU]) is None


@needs_operator
def test_a_graph_that_cannot_be_rewritten_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, 64, 64)
    (tmp_path / "model.onnx.data").unlink()
    assert linear.load_linear(file, OPTIONS, [CPU]) is None
    assert "linear layers are left to ONNX Runtime" in capsys.readouterr().err
