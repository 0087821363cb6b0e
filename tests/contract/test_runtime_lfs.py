"""Clones without their large files: every runtime says what lies there instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.lfs import pointer
from headrace.runtimes.registry import loader

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 90000\n"


def test_only_pointers_are_pointers(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    assert pointer(file) == ""
    for content in ("", "version 2", "version https://git-lf"):
        file.write_text(content)
        assert pointer(file) == ""
    file.write_text(POINTER)
    assert pointer(file) == "'a.bin' is a Git LFS pointer, not the file itself: run `git lfs pull`"


@pytest.mark.parametrize(("runtime", "name"), [("onnx", "model.onnx"), ("torch", "model.safetensors")])
def test_a_model_that_was_not_fetched(tmp_path: Path, runtime: str, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (tmp_path / name).write_text(POINTER)
    path = tmp_path / name if runtime == "onnx" else tmp_path
    with pytest.raises(ModelError, match=f"'{name}' is a Git LFS pointer"):
        loader(runtime)(InstanceSpec(model="m", runtime=runtime, path=str(path), device="cpu", threads=1))
