"""Pulling the demo repository: built once, repaired when damaged, failures with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtimes.convert import manifest
from headrace.runtimes.convert.child import Order, build_in_child
from headrace.runtimes.convert.demo import Progress, pull
from headrace.runtimes.convert.job import ConversionError, require
from headrace.runtimes.convert.recipes import RECIPES


def pull_addsub(folder: Path) -> tuple[list[str], list[Progress]]:
    seen: list[Progress] = []
    names = pull(folder / "demo", cache=folder / "cache", names=["addsub"], progress=seen.append)
    return names, seen


def test_a_model_is_built_once_and_repaired_when_a_file_is_damaged(tmp_path: Path) -> None:
    names, seen = pull_addsub(tmp_path)
    assert names == ["addsub"]
    assert [step.detail for step in seen[:1]] == ["building"]
    assert seen[-1] == Progress("", "1 built, 0 up to date", 1, 1)
    model = tmp_path / "demo" / "addsub" / "1" / "model.onnx"
    first = model.read_bytes()
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [".lock", "addsub", "manifest.json"]

    names, seen = pull_addsub(tmp_path)
    assert names == []
    assert seen == [Progress("addsub", "up to date", 0, 1), Progress("", "0 built, 1 up to date", 1, 1)]

    model.write_bytes(first[:-1])
    assert pull_addsub(tmp_path)[0] == ["addsub"]
    assert model.read_bytes() == first


def test_the_manifest_says_what_was_built(tmp_path: Path) -> None:
    pull_addsub(tmp_path)
    entry = manifest.read(tmp_path / "demo")["addsub"]
    assert entry.checks == {"wrong_elements": 0}
    assert set(entry.files) == {"1/model.onnx", "config.pbtxt", "labels.txt"}
    assert entry.files["labels.txt"]["bytes"] == (tmp_path / "demo" / "addsub" / "labels.txt").stat().st_size
    assert entry.libraries["onnx"]
    assert entry.revision == RECIPES["addsub"].revision


@pytest.mark.parametrize("text", ["", "[]", '{"models": {"addsub": {}}}', '{"models": 3}'])
def test_a_manifest_of_another_format_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.FILENAME).write_text(text)
    assert manifest.read(tmp_path) == {}


@pytest.mark.parametrize("field", ["revision", "sources", "files"])
def test_another_recipe_or_no_files_means_building_anew(tmp_path: Path, field: str) -> None:
    pull_addsub(tmp_path)
    repository = tmp_path / "demo"
    path = repository / manifest.FILENAME
    assert manifest.is_current("addsub", manifest.read(repository)["addsub"], repository)
    content = json.loads(path.read_text())
    content["models"]["addsub"][field] = {
        "revision": 0,
        "sources": {"timm": {"version": "0", "sha256": "0"}},
        "files": {},
    }[field]
    path.write_text(json.dumps(content))
    assert not manifest.is_current("addsub", manifest.read(repository)["addsub"], repository)


def test_a_failing_builder_leaves_its_reason_and_no_model(tmp_path: Path) -> None:
    order = Order(
        "sentiment", {"vaderSentiment": str(tmp_path / "no.tar.gz")}, str(tmp_path), str(tmp_path / "t")
    )
    with pytest.raises(
        ConversionError, match=r"(?s)^sentiment: the builder ended with status 1:.*No such file"
    ):
        build_in_child(order, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no demo model is called 'x'"):
        pull(tmp_path / "demo", cache=tmp_path / "cache", names=["x"], progress=lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "fine"), [(0.9e-5, True), (1e-5, False), (float("nan"), False)])
def test_a_check_has_a_bound(value: float, *, fine: bool) -> None:
    if fine:
        assert require("difference", value, below=1e-5) == value
    else:
        with pytest.raises(ConversionError, match="difference is"):
            require("difference", value, below=1e-5)


def test_the_caller_imports_nothing_heavy() -> None:
    code = (
        "import sys, headrace.runtimes.convert.demo;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'sklearn', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
