"""The torch runtime: names and datatypes of TorchScript and exported programs, folders, refusals."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from headrace.runtimes.base import InstanceSpec, InvalidInputError, ModelError, Run, TensorModel, TensorSpec
from headrace.runtimes.torch.loading import load

Declarations = Sequence[tuple[str, str, Sequence[int]]]


class Difference(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first - second, (first - second).sum(dim=1)


class Named(torch.nn.Module):
    def forward(self, first: torch.Tensor, *, second: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"DIFFERENCE": first - second, "MAXIMUM": torch.maximum(first, second)}


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def declare(tensors: Declarations) -> str:
    return json.dumps([{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors])


def script(folder: Path, module: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(folder / "model.pt"))
    return folder


def export(
    folder: Path,
    module: torch.nn.Module,
    arguments: tuple[torch.Tensor, ...],
    keywords: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    rows = torch.export.Dim("rows")
    names = ["first", "second"][: len(arguments) + len(keywords or {})]
    shapes = {"x": {0: rows}} if isinstance(module, Linear) else {name: {0: rows} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, arguments, dict(keywords or {}), dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")
    return folder


def model(path: Path, **options: str) -> TensorModel:
    return load(InstanceSpec("model", "torch", str(path), options=options))


FIRST = np.array([[5, 7], [1, 1]], np.float32)
SECOND = np.array([[1, 2], [3, 4]], np.float32)
PAIR: Sequence[int] = (-1, 2)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("second", "first"), ("one", "two")),
        (("INPUT__1", "INPUT__0"), ("OUTPUT__0", "OUTPUT__1")),
        (("b__1", "a__0"), ("d__0", "s__1")),
    ],
    ids=["by argument", "by number", "by number, any prefix"],
)
def test_torchscript_names(inputs: tuple[str, str], outputs: tuple[str, str], tmp_path: Path) -> None:
    loaded = model(
        script(tmp_path, Difference()),
        inputs=declare([(name, "FP32", PAIR) for name in inputs]),
        outputs=declare([(outputs[0], "FP32", PAIR), (outputs[1], "FP32", [-1])]),
    )
    result = loaded.execute({inputs[0]: SECOND, inputs[1]: FIRST}, (), Run())
    assert result[outputs[0]].tolist() == (FIRST - SECOND).tolist()
    assert result[outputs[1]].tolist() == (FIRST - SECOND).sum(axis=1).tolist()


def test_other_torchscript_names_go_by_order(tmp_path: Path) -> None:
    loaded = model(
        script(tmp_path, Difference()),
        inputs=declare([("left", "FP32", PAIR), ("right", "FP32", PAIR)]),
        outputs=declare([("difference", "FP32", PAIR)]),
    )
    result = loaded.execute({"right": SECOND, "left": FIRST}, (), Run())
    assert list(result) == ["difference"]
    assert result["difference"].tolist() == (FIRST - SECOND).tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (None, None, r"declare input and output in config\.pbtxt \(forward takes first, second\)"),
        ([("first", "FP32", PAIR)], [("d", "FP32", PAIR)], "no input is declared for argument second"),
        ([(f"x__{n}", "FP32", PAIR) for n in (1, 2)], [("d", "FP32", PAIR)], "the model has first, second"),
        ([("first", "BYTES", PAIR)], [("d", "FP32", PAIR)], "'first' is BYTES, which torch does not have"),
    ],
    ids=["none", "too few", "numbers", "text"],
)
def test_torchscript_declarations_must_fit(
    inputs: Declarations | None, outputs: Declarations | None, said: str, tmp_path: Path
) -> None:
    options = (
        {} if inputs is None or outputs is None else {"inputs": declare(inputs), "outputs": declare(outputs)}
    )
    with pytest.raises(ModelError, match=said):
        model(script(tmp_path, Difference()), **options)


def test_torchscript_that_returns_something_else(tmp_path: Path) -> None:
    inputs = declare([(name, "FP32", PAIR) for name in ("first", "second")])
    feed = {"first": FIRST, "second": SECOND}
    script(tmp_path, Difference())
    integers = model(tmp_path, inputs=inputs, outputs=declare([("d", "INT32", PAIR)]))
    with pytest.raises(ModelError, match=r"output 'd' is torch\.float32, but is declared as INT32"):
        integers.execute(feed, (), Run())
    three = model(tmp_path, inputs=inputs, outputs=declare([(f"d__{n}", "FP32", PAIR) for n in range(3)]))
    with pytest.raises(ModelError, match="result 0, result 1"):
        three.execute(feed, (), Run())


def test_torchscript_errors_are_one_line(tmp_path: Path) -> None:
    any_shape = [-1, -1]
    loaded = model(
        script(tmp_path, Difference()),
        inputs=declare([("first", "FP32", any_shape), ("second", "FP32", any_shape)]),
        outputs=declare([("d", "FP32", any_shape)]),
    )
    with pytest.raises(InvalidInputError, match=r"^The size of tensor a \(2\) must match") as caught:
        loaded.execute({"first": FIRST, "second": np.ones((2, 3), np.float32)}, (), Run())
    assert "\n" not in str(caught.value)


def test_a_cast_model_takes_and_gives_bfloat16(tmp_path: Path) -> None:
    loaded = model(
        script(tmp_path, Linear()),
        inputs=declare([("x", "BF16", PAIR)]),
        outputs=declare([("y", "BF16", PAIR)]),
        dtype="bfloat16",
    )
    result = loaded.execute({"x": FIRST.astype(ml_dtypes.bfloat16)}, (), Run())["y"]
    assert result.dtype == ml_dtypes.bfloat16
    assert result.astype(np.float32).tolist() == FIRST.tolist()


def test_exported_programs_know_their_tensors(tmp_path: Path) -> None:
    example = torch.ones(2, 2), torch.zeros(2, 2)
    loaded = model(export(tmp_path, Difference(), example))
    assert list(loaded.inputs) == [
        TensorSpec("first", "FP32", (-1, 2)),
        TensorSpec("second", "FP32", (-1, 2)),
    ]
    assert list(loaded.outputs) == [
        TensorSpec("OUTPUT__0", "FP32", (-1, 2)),
        TensorSpec("OUTPUT__1", "FP32", (-1,)),
    ]
    result = loaded.execute({"second": SECOND, "first": FIRST}, ["OUTPUT__1"], Run())
    assert result["OUTPUT__1"].tolist() == (FIRST - SECOND).sum(axis=1).tolist()


def test_exported_programs_with_keywords_and_named_results(tmp_path: Path) -> None:
    loaded = model(export(tmp_path, Named(), (torch.ones(2, 2),), {"second": torch.zeros(2, 2)}))
    assert [spec.name for spec in loaded.inputs] == ["first", "second"]
    result = loaded.execute({"second": SECOND, "first": FIRST}, (), Run())
    assert result["DIFFERENCE"].tolist() == (FIRST - SECOND).tolist()
    assert result["MAXIMUM"].tolist() == np.maximum(FIRST, SECOND).tolist()


def test_declared_datatypes_must_be_those_of_the_program(tmp_path: Path) -> None:
    export(tmp_path, Linear(), (torch.ones(2, 2),))
    with pytest.raises(ModelError, match="'x' is declared as FP16, the program has FP32"):
        model(tmp_path, inputs=declare([("x", "FP16", PAIR)]))


def test_guards_of_a_program_are_the_callers_fault(tmp_path: Path) -> None:
    loaded = model(export(tmp_path, Difference(), (torch.ones(2, 2), torch.zeros(2, 2))))
    with pytest.raises(InvalidInputError, match="size"):
        loaded.execute({"first": FIRST, "second": SECOND[:1]}, (), Run())


class Attack:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "record", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_pickles_in_programs_are_refused(record: str, tmp_path: Path) -> None:
    whole = export(tmp_path, Linear(), (torch.ones(2, 2),)) / "model.pt2"
    marker = tmp_path / "unpickled"
    folder = tmp_path / "attack"
    folder.mkdir()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(folder / "model.pt2", "w") as target:
        names = source.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            if name != f"{root}/{record}":
                target.writestr(name, source.read(name))
        target.writestr(f"{root}/{record}", pickle.dumps(Attack(marker)))
    with pytest.raises(ModelError, match=rf"has {record}, which is not plain tensors.*allow_pickle"):
        model(folder)
    assert not marker.exists()


def test_pickles_as_torchscript_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    with (tmp_path / "model.pt").open("wb") as file:
        torch.save(Attack(marker), file)
    with pytest.raises(ModelError, match=r"'model\.pt' is not a TorchScript file"):
        model(tmp_path)
    assert not marker.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random sequence classifier as a Hugging Face folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    config = transformers.RobertaConfig(  # type: ignore[call-arg]
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        type_vocab_size=1,
        num_labels=4,
    )
    classifier: Any = transformers.RobertaForSequenceClassification(config)
    path = tmp_path_factory.mktemp("roberta")
    classifier.save_pretrained(path)
    return path


def tokens(count: int, value: int = 5) -> dict[str, Any]:
    return {
        "input_ids": np.full((1, count), value, np.int64),
        "attention_mask": np.ones((1, count), np.int64),
    }


def test_the_architecture_decides_the_head(folder: Path) -> None:
    loaded = model(folder)
    assert [spec.name for spec in loaded.inputs] == ["input_ids", "attention_mask"]
    assert list(loaded.outputs) == [TensorSpec("logits", "FP32", (-1, 4))]
    assert loaded.execute(tokens(6), (), Run())["logits"].shape == (1, 4)


def test_positions_behind_the_padding_id_are_counted(folder: Path) -> None:
    loaded = model(folder)
    assert loaded.execute(tokens(18), (), Run())["logits"].shape == (1, 4)
    with pytest.raises(InvalidInputError, match="a row has 19 tokens, the model takes at most 18"):
        loaded.execute(tokens(19), (), Run())
    with pytest.raises(InvalidInputError, match="token ids must be from 0 to 49, not 50 to 50"):
        loaded.execute(tokens(3, value=50), (), Run())


def test_missing_weights_are_never_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"weights are missing .*would be random: classifier\.dense\.bias"):
        model(tmp_path)


def test_pickled_weights_need_the_option(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match="safetensors"):
        model(tmp_path)
    allowed = model(tmp_path, allow_pickle="true")
    np.testing.assert_allclose(
        allowed.execute(tokens(6), (), Run())["logits"],
        model(folder).execute(tokens(6), (), Run())["logits"],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8"}, "'dtype' must be one of float32, float16, bfloat16, not 'float8'"),
        ({"compile": "perhaps"}, "'compile' must be true or false, not 'perhaps'"),
    ],
)
def test_wrong_options(options: dict[str, str], said: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=said):
        model(folder, **options)


def test_torchscript_is_not_compiled_again(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'compile' does not apply to TorchScript"):
        model(script(tmp_path, Difference()), compile="true")


def test_a_missing_device_is_named(folder: Path) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ModelError, match=f"device cuda:{count} is not available; torch sees {count} CUDA"):
        load(InstanceSpec("model", "torch", str(folder), device=f"cuda:{count}"))


def test_lone_runs_use_their_own_number_of_threads(folder: Path) -> None:
    loaded = load(InstanceSpec("model", "torch", str(folder), threads=1, lone_threads=2))
    loaded.execute(tokens(3), (), Run(lone=True))
    assert torch.get_num_threads() == 2
    loaded.execute(tokens(3), (), Run())
    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own modules use what torch calls deprecated
@pytest.mark.timeout(600)
def test_a_compiled_model_gives_the_same_numbers(tmp_path: Path) -> None:
    export(tmp_path, Linear(), (torch.ones(2, 2),))
    compiled = model(tmp_path, compile="true")
    for rows in (FIRST, np.concatenate([FIRST, SECOND, FIRST])):
        assert compiled.execute({"x": rows}, (), Run())["OUTPUT__0"].tolist() == rows.tolist()
