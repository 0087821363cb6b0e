"""The ONNX runtime: datatypes, options, files, cancellation, and what its errors say."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.base import InstanceSpec, InvalidInputError, ModelError, Run, RunCancelledError
from headrace.runtimes.datatypes import NUMPY_TYPES
from headrace.runtimes.onnx.errors import clean
from headrace.runtimes.onnx.options import Provider, check_providers
from headrace.runtimes.onnx.session import OnnxModel, load

ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
Dimensions = Sequence[int | str]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def passing(path: Path, element: int, shape: Dimensions, operator: str = "Identity") -> Path:
    """Write Y = operator(X)."""
    x, y = (helper.make_tensor_value_info(name, element, shape) for name in "XY")
    return write(path, [helper.make_node(operator, ["X"], ["Y"])], [x], [y])


def model(path: Path, **options: str) -> OnnxModel:
    return load(InstanceSpec("model", "onnx", str(path), options=options))


def values(datatype: str) -> NDArray[Any]:
    if datatype == "BYTES":
        array = np.empty((2, 3), object)
        array[:] = [[b"a", b"", b"bc"], ["dé".encode(), b"\x00f", b"long " * 100]]
        return array
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    return np.array([[0, 1, 2], [3, 4, 100]]).astype(NUMPY_TYPES[datatype])


@pytest.mark.parametrize("datatype", list(NUMPY_TYPES))
def test_every_datatype_passes_through(datatype: str, tmp_path: Path) -> None:
    loaded = model(passing(tmp_path / "model.onnx", ELEMENTS[datatype], ["rows", 3]))
    assert [(spec.datatype, spec.shape) for spec in loaded.inputs] == [(datatype, (-1, 3))]
    result = loaded.execute({"X": values(datatype)}, (), Run())["Y"]
    expected = values(datatype)
    if datatype == "BYTES":
        assert [[text.encode() for text in row] for row in result.tolist()] == expected.tolist()
    else:
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
def test_scalars_and_empty_batches(datatype: str, tmp_path: Path) -> None:
    scalar = model(passing(tmp_path / "scalar.onnx", ELEMENTS[datatype], []))
    three = np.array(3, NUMPY_TYPES[datatype])
    result = scalar.execute({"X": three}, (), Run())["Y"]
    assert (result.shape, result.tolist()) == ((), 3.0)
    rows = model(passing(tmp_path / "rows.onnx", ELEMENTS[datatype], ["rows", 3]))
    empty = np.empty((0, 3), NUMPY_TYPES[datatype])
    assert rows.execute({"X": empty}, (), Run())["Y"].shape == (0, 3)


def test_bfloat16_is_computed_with(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"]) for name in "XY")
    whole = helper.make_tensor_value_info("Z", TensorProto.FLOAT, ["n"])
    nodes = [
        helper.make_node("Cast", ["X"], ["Z"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["Z"], ["Y"], to=TensorProto.BFLOAT16),
    ]
    loaded = model(write(tmp_path / "model.onnx", nodes, [x], [y, whole]))
    result = loaded.execute({"X": np.array([1.5, -2], ml_dtypes.bfloat16)}, (), Run())
    assert result["Y"].astype(np.float32).tolist() == result["Z"].tolist() == [1.5, -2.0]


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    loaded = model(passing(tmp_path / "model.onnx", TensorProto.STRING, ["n"]))
    array = np.array([b"\xff"], dtype=object)
    with pytest.raises(InvalidInputError, match="'X' has an element that is not UTF-8"):
        loaded.execute({"X": array}, (), Run())


def test_contiguous_inputs_are_not_copied(tmp_path: Path) -> None:
    loaded = model(passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"]))
    array = np.ones(4, np.float32)
    assert loaded._feed({"X": array})["X"] is array


def test_types_that_cannot_be_served(tmp_path: Path) -> None:
    path = passing(tmp_path / "model.onnx", TensorProto.FLOAT8E4M3FN, ["n"])
    with pytest.raises(ModelError, match=r"'X' has type tensor\(float8e4m3fn\), which cannot be served"):
        model(path)


def test_maps_of_probabilities_say_how_to_export(tmp_path: Path) -> None:
    node = helper.make_node("ZipMap", ["X"], ["P"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    element = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    output = helper.make_value_info("P", helper.make_sequence_type_proto(element))
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", 2])
    graph = helper.make_graph([node], "graph", [x], [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(
        ModelError, match=r"'P' has type seq\(map\(int64,tensor\(float\)\)\).*'zipmap': False"
    ):
        model(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "model.onnx",
        "onnx/model.onnx",
        "model_quantized.onnx",
        "model.onnx/model.onnx",
        "other.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_int8.onnx",
        "onnx/model_qint8_avx512_vnni.onnx",
    ],
)
def test_where_the_model_is_found(place: str, tmp_path: Path) -> None:
    passing(tmp_path / place, TensorProto.FLOAT, ["n"])
    assert model(tmp_path).platform == "onnxruntime_onnx"


def test_several_models_of_unknown_names(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        passing(tmp_path / name, TensorProto.FLOAT, ["n"])
    with pytest.raises(ModelError, match=r"found a\.onnx, b\.onnx"):
        model(tmp_path)


def test_options_reach_the_session(tmp_path: Path) -> None:
    path = passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"])
    options = model(
        path,
        **{
            "intra_op_thread_count": "2",
            "inter_op_thread_count": "3",
            "execution_mode": "1",
            "optimization.graph.level": "-1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "0",
            "session.set_denormal_as_zero": "1",
            "task": "tensors",
        },
    )._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 3)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_come_from_the_instance(tmp_path: Path) -> None:
    path = passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"])
    options = load(InstanceSpec("model", "onnx", str(path), threads=2))._session.get_session_options()
    assert options.intra_op_num_threads == 2
    spinning = model(path, **{"session.intra_op.allow_spinning": "1"})._session.get_session_options()
    assert spinning.get_session_config_entry("session.intra_op.allow_spinning") == "1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"intra_op_thread_count": "many"}, "'intra_op_thread_count' must be a whole number.*'many'"),
        (
            {"optimization.graph.level": "7"},
            r"'optimization.graph.level' must be one of -1, 0, 1, 2, not '7'",
        ),
        (
            {"execution_providers": "AbacusProvider"},
            "'AbacusProvider' is not available; .*CPUExecutionProvider",
        ),
    ],
)
def test_wrong_options(options: dict[str, str], said: str, tmp_path: Path) -> None:
    passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"])
    with pytest.raises(ModelError, match=said):
        model(tmp_path, **options)


def test_a_provider_that_did_not_start_is_an_error() -> None:
    wanted: list[Provider] = [("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"]
    check_providers(wanted[1:], ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match="'CUDAExecutionProvider' did not start"):
        check_providers(wanted, ["CPUExecutionProvider"])


def test_execution_providers_are_used(tmp_path: Path) -> None:
    passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"])
    session = model(tmp_path, execution_providers=" CPUExecutionProvider ")._session
    assert session.get_providers() == ["CPUExecutionProvider"]


def lone_session(loaded: OnnxModel) -> ort.InferenceSession | None:
    return loaded._lone


def test_lone_runs_get_a_session_of_their_own(tmp_path: Path) -> None:
    passing(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"], "Neg")
    loaded = load(
        InstanceSpec(
            "model",
            "onnx",
            str(tmp_path),
            threads=3,
            lone_threads=2,
            options={"intra_op_thread_count": "1"},
        )
    )
    assert loaded._session.get_session_options().intra_op_num_threads == 1
    ones = {"X": np.ones(3, np.float32)}
    assert loaded.execute(ones, (), Run())["Y"].tolist() == [-1, -1, -1]
    assert lone_session(loaded) is None
    # A thread that the first lone run starts loads it; pytest limits the wait.
    while (session := lone_session(loaded)) is None:
        assert loaded.execute(ones, (), Run(lone=True))["Y"].tolist() == [-1, -1, -1]
    assert session.get_session_options().intra_op_num_threads == 2
    assert loaded.execute(ones, (), Run(lone=True))["Y"].tolist() == [-1, -1, -1]


def test_a_run_is_cancelled_between_nodes(tmp_path: Path) -> None:
    one = numpy_helper.from_array(np.array([1.0], np.float32), "one")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v"], ["v2"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, None),
        ],
        [info("c2", TensorProto.BOOL, []), info("v2", TensorProto.FLOAT, None)],
    )
    body.node[1].input.append("one")
    write(
        tmp_path / "model.onnx",
        [helper.make_node("Loop", ["times", "", "X"], ["Y"], body=body)],
        [info("times", TensorProto.INT64, []), info("X", TensorProto.FLOAT, ["n"])],
        [info("Y", TensorProto.FLOAT, ["n"])],
        [one],
    )
    loaded = model(tmp_path)
    inputs: dict[str, NDArray[Any]] = {"times": np.array(10**10, np.int64), "X": np.zeros(1, np.float32)}
    run = Run()
    stopper = threading.Timer(0.1, run.cancel)
    stopper.start()
    with pytest.raises(RunCancelledError):
        loaded.execute(inputs, (), run)
    stopper.join()
    inputs["times"] = np.array(3, np.int64)
    assert loaded.execute(inputs, (), Run())["Y"].tolist() == [3.0]


def test_shapes_that_do_not_fit_inside_the_graph(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name, size in ("Xn", "Ym"))
    z = helper.make_tensor_value_info("Z", TensorProto.FLOAT, None)
    path = write(tmp_path / "model.onnx", [helper.make_node("Add", ["X", "Y"], ["Z"])], [x, y], [z])
    inputs = {"X": np.ones(2, np.float32), "Y": np.ones(3, np.float32)}
    with pytest.raises(InvalidInputError, match=r"broadcast .* 2 by 3$") as caught:
        model(path).execute(inputs, (), Run())
    assert "onnxruntime" not in str(caught.value)


def test_texts_are_trimmed() -> None:
    raw = (
        "[ONNXRuntimeError] : 1 : FAIL : Load model from /srv/models/m/1/model.onnx failed:\n"
        "/onnxruntime_src/onnxruntime/core/graph/model.cc:180 ort::Model::Model(a&&, const b&) Unsupported"
    )
    assert clean(raw) == "Load model from model.onnx failed: Unsupported"
