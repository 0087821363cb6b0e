from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.server.repository import check as checking
from headrace.server.repository.check import check
from headrace.server.repository.instances import Machine
from headrace.server.repository.preparation import prepare


async def test_everything_about_each_model(models_of: Any, factory: Any) -> None:
    models_of.add("bad").write_bytes(b"no model")
    models_of.add("good", config="response_cache { enable: true }")
    models_of.add("good", version=2)
    models_of.text("hf")
    models_of.add("wrong", config='input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }')
    results = {result.name: result for result in await check(models_of.root, factory, Machine(2))}
    assert {name: result.ok for name, result in results.items()} == {
        "bad": False, "good": True, "hf": True, "wrong": False,
    }  # fmt: skip
    good = results["good"].text
    assert good.startswith("good: ok\n")
    for part in (
        "1/model.onnx (",
        "versions that version_policy leaves out: 1",
        "version 2: task tensors, runtime onnx",
        "warning: good/config.pbtxt: response_cache: has no effect",
        "inputs: LEFT FP32 [-1,4], RIGHT FP32 [-1,4]",
        "max_batch_size: 4",
        "instances: cpu with 1 thread(s) or, alone, 2, cpu with 1 thread(s)",
    ):
        assert part in good
    hf = results["hf"].text
    assert "there is no config.pbtxt" in hf
    assert "texts of up to 64 tokens, pooling mean" in hf
    assert "problem: version 1: ONNX Runtime cannot load" in results["bad"].text
    assert "This config.pbtxt fits:" in results["wrong"].text
    assert len(factory.disposed) == len(factory.built) == 2


async def test_one_models_folder(models_of: Any, factory: Any) -> None:
    models_of.add("a")
    models_of.add("b")
    (result,) = await check(models_of.root / "b", factory, Machine(1))
    assert (result.name, result.ok) == ("b", True)


async def test_nothing_there_is_not_ok(tmp_path: Path, factory: Any) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        (result,) = await check(path, factory, Machine(1))
        assert not result.ok
        assert "there is no model folder here" in result.text


async def test_an_unexpected_error_is_told_and_the_other_models_are_checked(
    models_of: Any, factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "unbuilt", "undescribed", "unread"):
        models_of.add(name)
    build, describe = factory.build, checking._describe

    def prepared(folder: Any, machine: Machine) -> Any:
        if folder.name == "unread":
            raise TypeError("'int' object is not iterable")
        return prepare(folder, machine)

    async def built(definition: Any, on_failed: Any) -> Any:
        if definition.name == "unbuilt":
            raise KeyError("zz")
        return await build(definition, on_failed)

    def described(definition: Any, model: Any) -> list[str]:
        if definition.name == "undescribed":
            raise ValueError("no shape")
        return describe(definition, model)

    monkeypatch.setattr(checking, "prepare", prepared)
    monkeypatch.setattr(checking, "_describe", described)
    monkeypatch.setattr(factory, "build", built)
    results = {result.name: result for result in await check(models_of.root, factory, Machine(1))}
    assert {name: result.ok for name, result in results.items()} == {
        "good": True, "unbuilt": False, "undescribed": False, "unread": False,
    }  # fmt: skip
    for name, problem in (
        ("unread", "problem: unexpected error: TypeError: 'int' object is not iterable"),
        ("unbuilt", "problem: version 1: unexpected error: KeyError: 'zz'"),
        ("undescribed", "problem: unexpected error: ValueError: no shape"),
    ):
        assert results[name].text.startswith(f"{name}: cannot be served\n  files: ")
        assert results[name].text.endswith(problem)
    assert len(factory.disposed) == len(factory.built) == 2
