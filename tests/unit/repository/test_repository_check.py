from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.server.repository.check import check
from headrace.server.repository.instances import Machine


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
