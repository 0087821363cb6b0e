"""The small models that other tests run on: their graphs and configurations say the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from headrace.kserve.v2 import model_config_pb2
from headrace.runtimes.convert.identity import DATA_TYPES, identity_models

NUMPY = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    names = identity_models(folder)
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return folder


def config(repository: Path, name: str) -> model_config_pb2.ModelConfig:
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def session(repository: Path, name: str, version: int = 1) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        repository / name / str(version) / "model.onnx", providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("suffix", DATA_TYPES)
def test_a_graph_has_the_type_of_its_configuration(repository: Path, suffix: str) -> None:
    data_type, element = DATA_TYPES[suffix]
    found = config(repository, f"id_{suffix}")
    graph = onnx.load(repository / f"id_{suffix}" / "1" / "model.onnx").graph
    for tensor, value in ((found.input[0], graph.input[0]), (found.output[0], graph.output[0])):
        assert tensor.name == value.name
        assert tensor.data_type == model_config_pb2.DataType.Value(f"TYPE_{data_type}")
        assert list(tensor.dims) == [-1]
        assert value.type.tensor_type.elem_type == element
        assert len(value.type.tensor_type.shape.dim) == 1
    assert found.max_batch_size == 0


@pytest.mark.parametrize("suffix", sorted(set(DATA_TYPES) - {"bf16", "string"}))
def test_numbers_pass_through(repository: Path, suffix: str) -> None:
    dtype = np.dtype(NUMPY.get(suffix, suffix))
    values = np.array([0, 1, 1], dtype) if suffix == "bool" else np.array([0, 1, 100], dtype)
    (result,) = session(repository, f"id_{suffix}").run(None, {"INPUT0": values})
    assert result.dtype == dtype
    assert result.tolist() == values.tolist()


def test_strings_pass_through_in_batches(repository: Path) -> None:
    values = np.array([["a"], ["é 日本"], [""]], object)
    (result,) = session(repository, "id_str_batch").run(None, {"INPUT0": values})
    assert result.tolist() == values.tolist()
    found = config(repository, "id_str_batch")
    assert (found.max_batch_size, list(found.input[0].dims)) == (4, [1])


@pytest.mark.parametrize(
    ("name", "version", "batch"), [("nobatch", 1, ()), ("multiv", 1, (3,)), ("multiv", 3, (1,))]
)
def test_sums_and_differences(repository: Path, name: str, version: int, batch: tuple[int, ...]) -> None:
    left = np.arange(np.prod((*batch, 16)), dtype=np.int32).reshape(*batch, 16)
    right = np.full_like(left, 5)
    total, difference = session(repository, name, version).run(None, {"INPUT0": left, "INPUT1": right})
    assert (total == left + right).all()
    assert (difference == left - right).all()
    assert bool(config(repository, name).max_batch_size) is bool(batch)
    assert config(repository, name).version_policy.HasField("all") is (name == "multiv")


def test_the_slow_model_works_in_many_steps(repository: Path) -> None:
    graph = onnx.load(repository / "slow" / "1" / "model.onnx").graph
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    (steps,) = [
        onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name == loop.input[0]
    ]
    assert steps >= 1000
    assert "MatMul" in {node.op_type for node in loop.attribute[0].g.node}
    assert config(repository, "slow").max_batch_size == 1
