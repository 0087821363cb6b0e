"""Convolutions that pad for themselves: what is folded into them, and what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from headrace.runtimes.onnx.padding import fold_padding
from headrace.runtimes.onnx.preparing import prepare

SIDES = [0, 0, 0, 1, 0, 0, 2, 1]


def model(
    sides: list[int] = SIDES, *, mode: str = "constant", fill: float | None = None, **conv: Any
) -> ModelProto:
    """Return a graph that pads images [rows, 3, 9, 9] and convolves them."""
    weights = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    constants = {"sides": np.array(sides), "weights": weights}
    inputs = ["x", "sides"]
    if fill is not None:
        constants["fill"] = np.array(fill, np.float32)
        inputs.append("fill")
    nodes = [
        helper.make_node("Pad", inputs, ["padded"], mode=mode),
        helper.make_node("Conv", ["padded", "weights"], ["y"], **conv),
    ]
    return whole(nodes, constants)


def whole(nodes: list[onnx.NodeProto], constants: dict[str, Any], *more: str) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3, 9, 9])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", *more)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def answer(made: ModelProto) -> Any:
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(4).standard_normal((2, 3, 9, 9)).astype(np.float32)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("more", "conv", "pads"),
    [
        ({}, {}, [0, 1, 2, 1]),
        ({"fill": 0.0}, {"strides": [2, 2]}, [0, 1, 2, 1]),
        ({}, {"pads": [1, 1, 0, 2]}, [1, 2, 2, 3]),
        ({}, {"auto_pad": "VALID", "dilations": [2, 2]}, [0, 1, 2, 1]),
    ],
)
def test_zeros_are_added_by_the_convolution(
    more: dict[str, Any], conv: dict[str, Any], pads: list[int]
) -> None:
    made = model(**more, **conv)
    expected = answer(made)
    assert fold_padding(made.graph) == 1
    (node,) = made.graph.node
    assert {each.name: list(each.ints) for each in node.attribute}["pads"] == pads
    assert [tensor.name for tensor in made.graph.initializer] == ["weights"]
    np.testing.assert_allclose(answer(made), expected, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        model(fill=1.0),
        model(mode="reflect"),
        model([0, 1, 0, 0, 0, 0, 0, 0]),
        model([0, 0, -1, 0, 0, 0, 0, 0]),
        model(auto_pad="SAME_UPPER"),
    ],
    ids=["not zeros", "reflected", "channels", "cut off", "sizes that depend on the image"],
)
def test_other_padding_stays(made: ModelProto) -> None:
    before = made.SerializeToString()
    assert fold_padding(made.graph) == 0
    assert made.SerializeToString() == before


def test_what_others_read_stays() -> None:
    constants = {"sides": np.array(SIDES), "weights": np.ones((4, 3, 3, 3), np.float32)}
    pad = helper.make_node("Pad", ["x", "sides"], ["padded"])
    conv = helper.make_node("Conv", ["padded", "weights"], ["y"])
    pool = helper.make_node("MaxPool", ["padded"], ["z"], kernel_shape=[2, 2])
    assert fold_padding(whole([pad, conv, pool], constants, "z").graph) == 0
    assert fold_padding(whole([pad, conv], constants, "padded").graph) == 0
    second = helper.make_node("Conv", ["padded", "weights"], ["z"])
    made = whole([pad, conv, second], constants, "z")
    assert fold_padding(made.graph) == 1
    assert [node.input[0] for node in made.graph.node] == ["x", "x"]


def test_padding_that_is_computed_from_constants_is_folded_when_a_graph_is_prepared(tmp_path: Path) -> None:
    """PyTorch's exporter writes how much is padded as a computation."""
    constants = {
        "half": np.array(SIDES[:4]),
        "rest": np.array(SIDES[4:]),
        "weights": np.ones((4, 3, 3, 3), np.float32),
    }
    nodes = [
        helper.make_node("Concat", ["half", "rest"], ["sides"], axis=0),
        helper.make_node("Pad", ["x", "sides"], ["padded"]),
        helper.make_node("Conv", ["padded", "weights"], ["y"]),
    ]
    onnx.save(whole(nodes, constants), tmp_path / "model.onnx")
    folder = tmp_path / "prepared"
    folder.mkdir()
    prepare(tmp_path / "model.onnx", folder, {})
    made = onnx.load(str(folder / "graph.onnx"), load_external_data=False)
    assert Counter(node.op_type for node in made.graph.node)["Pad"] == 0
    assert sorted(file.name for file in folder.iterdir()) == ["graph.onnx", "weights.bin"]
