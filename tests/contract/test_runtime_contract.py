"""What every runtime promises: the same small model gives the same answers and the same errors in each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from headrace.runtimes.base import (
    InstanceSpec,
    InvalidInputError,
    ModelError,
    Run,
    RunCancelledError,
    TensorModel,
    TensorSpec,
)
from headrace.runtimes.registry import RUNTIMES, loader

WIDTH = 4
INPUTS = [TensorSpec("LEFT", "FP32", (-1, WIDTH)), TensorSpec("RIGHT", "FP32", (-1, WIDTH))]
OUTPUTS = [TensorSpec("SUM", "FP32", (-1, WIDTH)), TensorSpec("DIFFERENCE", "FP32", (-1, WIDTH))]


class AddSub(torch.nn.Module):
    """SUM = LEFT + RIGHT, DIFFERENCE = LEFT - RIGHT."""

    def forward(self, LEFT: torch.Tensor, RIGHT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
        return LEFT + RIGHT, LEFT - RIGHT


def declared() -> dict[str, str]:
    def encode(specs: list[TensorSpec]) -> str:
        return json.dumps([{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in specs])

    return {"inputs": encode(INPUTS), "outputs": encode(OUTPUTS)}


def onnx_file(folder: Path) -> InstanceSpec:
    tensor = {
        spec.name: helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["rows", WIDTH])
        for spec in (*INPUTS, *OUTPUTS)
    }
    nodes = [
        helper.make_node("Add", ["LEFT", "RIGHT"], ["SUM"]),
        helper.make_node("Sub", ["LEFT", "RIGHT"], ["DIFFERENCE"]),
    ]
    graph = helper.make_graph(
        nodes, "addsub", [tensor["LEFT"], tensor["RIGHT"]], [tensor["SUM"], tensor["DIFFERENCE"]]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return InstanceSpec("addsub", "onnx", str(folder))


def torchscript_file(folder: Path) -> InstanceSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages new TorchScript; served files are old
        torch.jit.save(torch.jit.script(AddSub()), str(folder / "model.pt"))
    return InstanceSpec("addsub", "torch", str(folder), options=declared())


def exported_file(folder: Path) -> InstanceSpec:
    rows = torch.export.Dim("rows")
    examples = torch.ones(2, WIDTH), torch.zeros(2, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            AddSub(), examples, dynamic_shapes={"LEFT": {0: rows}, "RIGHT": {0: rows}}
        )
        torch.export.save(program, folder / "model.pt2")
    return InstanceSpec("addsub", "torch", str(folder), options=declared())


BUILDERS: MappingProxyType[str, Callable[[Path], InstanceSpec]] = MappingProxyType(
    {"onnx": onnx_file, "torch-script": torchscript_file, "torch-export": exported_file}
)


@pytest.fixture(scope="module", params=list(BUILDERS))
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InstanceSpec:
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(instance: InstanceSpec) -> TensorModel:
    return loader(instance.runtime)(instance)


def rows(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


def test_every_runtime_is_covered() -> None:
    assert {name.partition("-")[0] for name in BUILDERS} == set(RUNTIMES)


def test_specifications(model: TensorModel) -> None:
    assert list(model.inputs) == INPUTS
    assert list(model.outputs) == OUTPUTS
    assert model.platform in {"onnxruntime_onnx", "pytorch_libtorch"}


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_numbers_at_any_batch_size(model: TensorModel, count: int) -> None:
    left, right = rows(count, 1), rows(count, 2)
    result = model.execute({"LEFT": left, "RIGHT": right}, (), Run())
    assert list(result) == ["SUM", "DIFFERENCE"]
    np.testing.assert_array_equal(result["SUM"], left + right)
    np.testing.assert_array_equal(result["DIFFERENCE"], left - right)
    assert result["SUM"].dtype == np.float32


def test_inputs_in_any_order_and_any_layout(model: TensorModel) -> None:
    left, right = np.asfortranarray(rows(3, 1)), rows(6, 2)[::-2]
    result = model.execute({"RIGHT": right, "LEFT": left}, (), Run())
    np.testing.assert_array_equal(result["DIFFERENCE"], left - right)


def test_read_only_inputs_stay_as_they_are(model: TensorModel) -> None:
    left = np.frombuffer(rows(3, 1).tobytes(), np.float32).reshape(3, WIDTH)
    before = left.copy()
    result = model.execute({"LEFT": left, "RIGHT": left}, (), Run())
    np.testing.assert_array_equal(result["SUM"], before * 2)
    np.testing.assert_array_equal(left, before)


def test_only_the_named_outputs(model: TensorModel) -> None:
    inputs = {"LEFT": rows(2, 1), "RIGHT": rows(2, 2)}
    assert list(model.execute(inputs, ["DIFFERENCE"], Run())) == ["DIFFERENCE"]


def test_lone_runs_give_the_same_numbers(model: TensorModel) -> None:
    inputs = {"LEFT": rows(5, 1), "RIGHT": rows(5, 2)}
    alone = model.execute(inputs, (), Run(lone=True))
    np.testing.assert_array_equal(alone["SUM"], model.execute(inputs, (), Run())["SUM"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({"LEFT": rows(2, 1)}, (), "missing input 'RIGHT'"),
        ({"LEFT": rows(2, 1), "RIGHT": rows(2, 2), "MIDDLE": rows(2, 3)}, (), "unknown input 'MIDDLE'"),
        ({"LEFT": rows(2, 1).astype(np.int64), "RIGHT": rows(2, 2)}, (), "'LEFT' is INT64.* expects FP32"),
        ({"LEFT": rows(2, 1)[:, :3], "RIGHT": rows(2, 2)}, (), "LEFT"),
        ({"LEFT": rows(2, 1)[0], "RIGHT": rows(2, 2)}, (), "LEFT"),
        ({"LEFT": rows(2, 1), "RIGHT": rows(2, 2)}, ("QUOTIENT",), "unknown output 'QUOTIENT'"),
    ],
    ids=["missing", "unknown", "datatype", "shape", "rank", "output"],
)
def test_wrong_inputs_are_the_callers_fault(
    model: TensorModel, inputs: dict[str, NDArray[np.float32]], outputs: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        model.execute(inputs, outputs, Run())


def test_a_cancelled_run_does_not_start(model: TensorModel) -> None:
    run = Run()
    run.cancel()
    with pytest.raises(RunCancelledError):
        model.execute({"LEFT": rows(2, 1), "RIGHT": rows(2, 2)}, (), run)


def test_a_damaged_file_is_named(instance: InstanceSpec, tmp_path: Path) -> None:
    name = next(path.name for path in Path(instance.path).iterdir())
    (tmp_path / name).write_bytes(b"this is no model")
    damaged = InstanceSpec("addsub", instance.runtime, str(tmp_path), options=instance.options)
    with pytest.raises(ModelError, match=name) as caught:
        loader(instance.runtime)(damaged)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_was_looked_for(instance: InstanceSpec, tmp_path: Path) -> None:
    name = next(path.name for path in Path(instance.path).iterdir())
    empty = InstanceSpec("addsub", instance.runtime, str(tmp_path), options=instance.options)
    with pytest.raises(ModelError, match=rf"looked for .*{name}"):
        loader(instance.runtime)(empty)


def test_an_unknown_runtime_says_which_there_are() -> None:
    with pytest.raises(ModelError, match=r"unknown runtime 'abacus'; expected one of onnx, torch"):
        loader("abacus")
