"""Packing of fused text encoders: what is rewritten, what is refused, and that the values stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from headrace.runtimes.onnx.encoder_facts import EncoderFacts
from headrace.runtimes.onnx.fusion_check import compare
from headrace.runtimes.onnx.packing import MASK, NotPackedError, pack

WIDTH: Final = 8
FACTS: Final = EncoderFacts(heads=2, width=WIDTH, vocabulary=50)


def attention(source: str, target: str, **more: Any) -> list[NodeProto]:
    node = helper.make_node(
        "Attention", [source, "qkv", "qkv_bias", "lengths"], [target], num_heads=2, **more
    )
    node.domain = "com.microsoft"
    return [node]


def encoder(layers: list[NodeProto], mask: str = MASK, rank: int = 3) -> ModelProto:
    """A graph that embeds ids, counts the tokens of each row, and goes on with ``layers`` to ``out``."""
    random = np.random.default_rng(5)
    weights = {
        "table": random.normal(size=(50, WIDTH)),
        "qkv": random.normal(size=(WIDTH, 3 * WIDTH)),
        "qkv_bias": random.normal(size=3 * WIDTH),
        "dense": random.normal(size=(WIDTH, WIDTH)),
        "shift": random.normal(size=WIDTH),
        "rowwise": random.normal(size=(1, 1, 1)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Cast", [mask], ["ones"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["ones", "axis"], ["lengths"], keepdims=0),
        *layers,
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "width"])
    masks = helper.make_tensor_value_info(mask, TensorProto.INT64, ["rows", "width"])
    shape: list[str | int | None] = ["rows", "width", WIDTH] if rank == 3 else ["rows", WIDTH]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    constants = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    constants += [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
    ]
    graph = helper.make_graph(nodes, "encoder", [ids, masks], [out], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


LAYER: Final = (
    *attention("x", "a"),
    helper.make_node("MatMul", ["a", "dense"], ["b"]),
    helper.make_node("Add", ["shift", "b"], ["c"]),
    helper.make_node("Add", ["c", "x"], ["d"]),
    helper.make_node("LayerNormalization", ["d", "shift"], ["e"], axis=2),
)


@pytest.mark.parametrize(
    ("head", "rank"),
    [
        ([*attention("e", "f"), helper.make_node("Add", ["f", "e"], ["out"])], 3),
        # reads the first position of each row, so the rows must be there again
        ([*attention("e", "f"), helper.make_node("Gather", ["f", "zero"], ["out"], axis=1)], 2),
        ([helper.make_node("Mul", ["e", "rowwise"], ["out"])], 3),
        ([helper.make_node("ReduceMax", ["e"], ["m"], axes=[1], keepdims=1), *attention("e", "out")], 3),
    ],
    ids=["residual", "first-token", "rank-3-constant", "pooled-beside"],
)
def test_packed_graphs_compute_the_same(head: list[NodeProto], rank: int, tmp_path: Path) -> None:
    model = encoder([*LAYER, *head], rank=rank)
    onnx.save(model, tmp_path / "plain.onnx")
    pack(model)
    onnx.save(model, tmp_path / "packed.onnx")
    assert compare(tmp_path / "plain.onnx", tmp_path / "packed.onnx", FACTS, 0) < 1e-5
    linear = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert linear
    assert all(node.input[0].startswith("packing/") for node in linear)


@pytest.mark.parametrize(
    ("layers", "mask", "reason"),
    [
        (list(LAYER), "mask", "no input attention_mask"),
        (list(LAYER[1:]), MASK, "no operators for attention"),
        (
            [*LAYER[:1], helper.make_node("CumSum", ["a", "axis0"], ["y"]), *attention("y", "out")],
            MASK,
            "reads y",
        ),
        (attention("x", "out", do_rotary=1), MASK, "do_rotary"),
    ],
    ids=["no-mask", "no-attention", "looks-at-neighbours", "rotary"],
)
def test_what_cannot_be_packed_is_refused(layers: list[NodeProto], mask: str, reason: str) -> None:
    with pytest.raises(NotPackedError, match=reason):
        pack(encoder(layers, mask))
