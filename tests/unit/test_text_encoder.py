"""The token-id head on graphs whose "hidden states" show what they were fed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.base import InstanceSpec, InvalidInputError, ModelError, Run, TensorSpec, TextSpec
from headrace.runtimes.onnx.session import load
from headrace.runtimes.text import TextEncoder

ALL = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
ROWS = {"token_ids": np.array([1, 2, 3, 4, 5, 6], np.int32), "lengths": np.array([2, 3, 1], np.int32)}
FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def graph(
    folder: Path,
    names: Sequence[str] = ALL,
    *,
    element: int = TensorProto.INT64,
    floating: int = TensorProto.FLOAT,
    sequence: int | str = "sequence",
) -> Path:
    """Write a graph whose hidden state [..., i] is its i-th input, as a number."""
    inputs = [helper.make_tensor_value_info(name, element, ["batch", sequence]) for name in names]
    shown = helper.make_tensor_value_info("shown", floating, ["batch", sequence, len(names)])
    nodes = [helper.make_node("Concat", [f"{name}_3d" for name in names], ["shown"], axis=-1)]
    for name in names:
        nodes.insert(0, helper.make_node("Unsqueeze", [f"{name}_f", "last"], [f"{name}_3d"]))
        nodes.insert(0, helper.make_node("Cast", [name], [f"{name}_f"], to=floating))
    last = numpy_helper.from_array(np.array([-1], np.int64), "last")
    return save(folder, nodes, inputs, [shown], [last])


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    made = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def passed(folder: Path, outputs: Sequence[tuple[str, int]]) -> Path:
    """Write a graph with outputs of the given names and ranks, all of them the ids as numbers."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    nodes = [helper.make_node("Cast", ["input_ids"], ["f"], to=TensorProto.FLOAT)]
    infos = []
    for name, rank in outputs:
        shape: list[int | str] = ["batch", "sequence", 1]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[:rank]))
        nodes.append(
            helper.make_node("Unsqueeze", ["f", "last"], [name])
            if rank == 3
            else helper.make_node("Identity", ["f"], [name])
        )
    last = numpy_helper.from_array(np.array([-1], np.int64), "last")
    return save(folder, nodes, [ids], infos, [last])


def encoder(path: Path, head: str = "embed", pooling: str = "mean", pad_id: int = 9) -> TextEncoder:
    text = TextSpec(head, pooling, pad_id)
    return TextEncoder(load(InstanceSpec("model", "onnx", str(path), text=text)), text)


def run(model: TextEncoder, *outputs: str, **more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return model.execute({**ROWS, **more}, outputs, Run())


@pytest.mark.parametrize("element", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("floating", list(FLOATS))
def test_every_token_meets_its_own_values(element: int, floating: int, tmp_path: Path) -> None:
    model = encoder(graph(tmp_path, element=element, floating=floating))
    result = run(model, type_ids=np.array([0, 1, 0, 1, 1, 0], np.uint8))["token_embeddings"]
    assert result.dtype == np.float32
    assert result.tolist() == [
        [1, 1, 0, 0],
        [2, 1, 1, 1],
        [3, 1, 0, 0],
        [4, 1, 1, 1],
        [5, 1, 1, 2],
        [6, 1, 0, 0],
    ]


def test_padding_is_on_the_right_with_the_models_pad_id(tmp_path: Path) -> None:
    model = encoder(passed(tmp_path, [("logits", 2)]), "classify", pad_id=9)
    assert run(model)["logits"].tolist() == [[1, 2, 9], [3, 4, 5], [6, 9, 9]]


def test_rows_of_one_length_need_no_padding(tmp_path: Path) -> None:
    model = encoder(graph(tmp_path))
    result = run(model, lengths=np.array([3, 3], np.int32))
    assert result["embedding"].tolist() == [[2, 1, 0, 1], [5, 1, 0, 1]]
    assert result["token_embeddings"][:, 0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("pooling", "ids"), [("mean", [1.5, 4.0, 6.0]), ("cls", [1.0, 3.0, 6.0]), ("last", [2.0, 5.0, 6.0])]
)
def test_poolings_see_no_padding(pooling: str, ids: list[float], tmp_path: Path) -> None:
    result = run(encoder(graph(tmp_path), pooling=pooling), "embedding")
    assert list(result) == ["embedding"]
    np.testing.assert_allclose(result["embedding"][:, 0], ids, rtol=1e-6)
    np.testing.assert_allclose(result["embedding"][:, 1], [1, 1, 1], rtol=1e-6)


def test_only_the_inputs_of_the_graph_are_fed(tmp_path: Path) -> None:
    model = encoder(graph(tmp_path, ["input_ids", "position_ids"]))
    assert [spec.name for spec in model.inputs] == ["token_ids", "lengths"]
    # Token types are dropped where the model has none, so that callers need not know.
    result = run(model, type_ids=np.ones(6, np.int32))["token_embeddings"]
    assert result.tolist() == [[1, 0], [2, 1], [3, 0], [4, 1], [5, 2], [6, 0]]


def test_positions_are_counted_behind_the_padding_id(tmp_path: Path) -> None:
    path = graph(tmp_path, ["input_ids", "position_ids"])
    session = load(InstanceSpec("m", "onnx", str(path)))
    model = TextEncoder(session, TextSpec("embed", "mean", 3, padding_position=3))
    result = run(model)["token_embeddings"]
    assert result.tolist() == [[1, 4], [2, 5], [3, 3], [4, 4], [5, 5], [6, 4]]


def test_a_fixed_length_is_padded_to(tmp_path: Path) -> None:
    model = encoder(graph(tmp_path, sequence=4))
    assert run(model)["embedding"][:, 0].tolist() == pytest.approx([1.5, 4, 6])
    with pytest.raises(
        InvalidInputError, match=r"a row of 6 tokens is longer than the graph's fixed length of 4"
    ):
        run(model, lengths=np.array([6], np.int32))


@pytest.mark.parametrize(
    ("outputs", "head", "source", "names"),
    [
        (
            [("first", 3), ("last_hidden_state", 3)],
            "embed",
            "last_hidden_state",
            ["embedding", "token_embeddings"],
        ),
        ([("pooler_output", 2), ("hidden", 3)], "embed", "hidden", ["embedding", "token_embeddings"]),
        ([("pooled", 2), ("sentence_embedding", 2)], "embed", "sentence_embedding", ["embedding"]),
        ([("anything", 2)], "embed", "anything", ["embedding"]),
        ([("attention", 2), ("logits", 2)], "classify", "logits", ["logits"]),
        ([("scores", 2), ("hidden", 3)], "classify", "scores", ["logits"]),
    ],
)
def test_which_output_is_read(
    outputs: list[tuple[str, int]], head: str, source: str, names: list[str], tmp_path: Path
) -> None:
    model = encoder(passed(tmp_path, outputs), head)
    assert model._source.name == source
    assert [spec.name for spec in model.outputs] == names
    assert list(run(model)) == names


def test_pooled_vectors_are_passed_on(tmp_path: Path) -> None:
    model = encoder(passed(tmp_path, [("sentence_embedding", 2)]))
    assert list(model.outputs) == [TensorSpec("embedding", "FP32", (-1, -1))]
    assert run(model)["embedding"].tolist() == [[1, 2, 9], [3, 4, 5], [6, 9, 9]]


@pytest.mark.parametrize(
    ("outputs", "head", "said"),
    [
        ([("a", 2), ("b", 2)], "classify", r"no output of 'logits'.*it has a FP32 \[-1, -1\], b FP32"),
        ([("flat", 1)], "embed", "no output of hidden states"),
        ([("logits", 2)], "translate", "unknown head 'translate'; expected embed or classify"),
    ],
)
def test_graphs_that_are_no_encoders(
    outputs: list[tuple[str, int]], head: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path
    if outputs == [("flat", 1)]:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        flat = helper.make_tensor_value_info("flat", TensorProto.INT64, [2])
        save(tmp_path, [helper.make_node("Shape", ["input_ids"], ["flat"])], [ids], [flat])
    else:
        passed(tmp_path, outputs)
    with pytest.raises(ModelError, match=said):
        encoder(path, head)


def test_inputs_that_token_ids_cannot_give(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'pixel_values' \(INT64 \[-1, -1\]\) cannot be made from token ids"
    ):
        encoder(graph(tmp_path, ["input_ids", "pixel_values"]))
    with pytest.raises(ModelError, match="the graph has no input 'input_ids'; it has attention_mask"):
        encoder(graph(tmp_path, ["attention_mask"]))
    with pytest.raises(
        ModelError,
        match="unknown pooling 'median'; expected splade, splade_sum, splade_log1p, splade_sum_log1p, or of",
    ):
        encoder(graph(tmp_path), pooling="median")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"token_ids": ROWS["token_ids"]}, "missing input 'lengths'"),
        ({**ROWS, "mask": ROWS["lengths"]}, "unknown input 'mask'"),
        (
            {**ROWS, "token_ids": np.ones(6, np.float32)},
            "'token_ids' must be a vector of integers, not float32",
        ),
        ({**ROWS, "lengths": np.array([[6]], np.int32)}, "'lengths' must be a vector .* of rank 2"),
        ({**ROWS, "lengths": np.array([5, 0, 1], np.int32)}, "every row needs at least one token"),
        ({**ROWS, "lengths": np.array([], np.int32)}, "a batch at least one row"),
        ({**ROWS, "lengths": np.array([2, 3], np.int32)}, "lengths add up to 5 tokens, but 6 token ids were"),
        ({**ROWS, "type_ids": np.zeros(5, np.uint8)}, "6 token ids and 5 type ids were given"),
    ],
)
def test_batches_that_do_not_fit_together(inputs: dict[str, NDArray[Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=said):
        encoder(graph(tmp_path)).execute(inputs, (), Run())


def test_unknown_outputs(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="unknown output 'logits'; expected one of embedding, token_emb"
    ):
        run(encoder(graph(tmp_path)), "logits")
