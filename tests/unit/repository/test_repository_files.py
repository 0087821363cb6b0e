# ruff: noqa: E501 - one case a line
from __future__ import annotations

from typing import Any

import pytest

from headrace.server.errors import LoadFailedError
from headrace.server.repository.config import parse_text
from headrace.server.repository.files import ModelFile, find_model_file
from headrace.server.repository.layout import open_model


def find(models_of: Any, config: str, *files: str) -> ModelFile:
    version = models_of.folder("m") / "1"
    version.mkdir()
    for name in files:
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        (version / name).write_text("")
    folder = open_model("m", [models_of.root])
    return find_model_file(folder, version, parse_text(f'name: "m" {config}', "F"), "F")


@pytest.mark.parametrize(
    ("config", "files", "runtime", "path", "filename"),
    [
        ("", ["model.onnx"], "onnx", "model.onnx", "model.onnx"),
        ('platform: "onnxruntime_onnx"', ["model.onnx", "model.pt"], "onnx", "model.onnx", "model.onnx"),
        ('backend: "onnxruntime"', ["onnx/model.onnx"], "onnx", "onnx/model.onnx", "onnx/model.onnx"),
        ('backend: "pytorch"', ["model.onnx", "model.pt"], "torch", "model.pt", "model.pt"),
        ('platform: "pytorch_libtorch"', ["model.pt2"], "torch", "model.pt2", "model.pt2"),
        ("", ["model.onnx", "model.pt"], "onnx", "model.onnx", "model.onnx"),
        ("", ["config.json", "model.safetensors"], "torch", "", "model.safetensors"),
        ('backend: "torch"', ["model.safetensors.index.json"], "torch", "", "model.safetensors.index.json"),
        ("", ["classifier.onnx"], "onnx", "classifier.onnx", "classifier.onnx"),
        ('default_model_filename: "net.onnx"', ["net.onnx", "model.onnx"], "onnx", "net.onnx", "net.onnx"),
        ('default_model_filename: "pytorch_model.bin"', ["pytorch_model.bin"], "torch", "", "pytorch_model.bin"),
        ("", ["model.onnx/model.onnx", "model.onnx/weights"], "onnx", "model.onnx/model.onnx", "model.onnx"),
        ('backend: "acme"', ["anything"], "acme", "", ""),
    ],
)  # fmt: skip
def test_runtime_and_file(
    models_of: Any, config: str, files: list[str], runtime: str, path: str, filename: str
) -> None:
    found = find(models_of, config, *files)
    assert found == ModelFile(runtime, models_of.root / "m" / "1" / path, filename)


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ("", ["readme.md"], r"m/1: there is no model file for 'm': expected one of model\.onnx, .*'readme\.md'"),
        ("", ["a.onnx", "b.onnx"], "there is no model file"),
        ('backend: "pytorch"', ["model.onnx"], r"expected one of model\.pt2, model\.pt"),
        ("", ["pytorch_model.bin"], r"pytorch_model\.bin is a pickle and can run code"),
        ("", ["model.py"], r"model\.py \(Triton's Python backend\) is not supported"),
        ('default_model_filename: "x.onnx"', ["y.onnx"], r"F: default_model_filename: there is no file 'm/1/x\.onnx'"),
        ('default_model_filename: "model.bin"', ["model.bin"], "must specify 'platform' or 'backend' for 'm'"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(models_of: Any, config: str, files: list[str], message: str) -> None:
    with pytest.raises(LoadFailedError, match=message):
        find(models_of, config, *files)
