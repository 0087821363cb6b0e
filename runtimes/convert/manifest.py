"""manifest.json in the root of the repository: what was built, from what, and what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from headrace.runtimes.convert.job import Checks
from headrace.runtimes.convert.packages import PACKAGES, sha256
from headrace.runtimes.convert.recipes import RECIPES

FILENAME: Final = "manifest.json"
LIBRARIES: Final = (
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "scikit-learn",
    "skl2onnx",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Entry:
    """One built model, with what it was made of and what was measured.

    ``sources`` maps each package to its version and SHA-256, ``libraries`` the converting libraries to their
    versions, ``files`` each path below the model's folder to its size in bytes and SHA-256.
    """

    revision: int
    sources: dict[str, dict[str, str]]
    libraries: dict[str, str]
    checks: dict[str, float | int | str | bool]
    seconds: float
    files: dict[str, dict[str, int | str]]


def read(repository: Path) -> dict[str, Entry]:
    """The entries of the manifest; none when it is absent or of another format."""
    try:
        models = json.loads((repository / FILENAME).read_text(encoding="utf-8"))["models"]
        return {name: Entry(**entry) for name, entry in models.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(repository: Path, entries: dict[str, Entry]) -> None:
    """Replace the manifest in one step: a reader sees the old one or the new one."""
    text = json.dumps({"models": {name: asdict(entries[name]) for name in sorted(entries)}}, indent=2) + "\n"
    scratch = repository / f".{FILENAME}.new"
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(repository / FILENAME)


def describe(name: str, folder: Path, checks: Checks, seconds: float) -> Entry:
    """The entry of a model that lies finished in ``folder``."""
    recipe = RECIPES[name]
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Entry(
        revision=recipe.revision,
        sources={
            key: {"version": PACKAGES[key].version, "sha256": PACKAGES[key].sha256} for key in recipe.packages
        },
        libraries={name: version for name in LIBRARIES if (version := _version(name))},
        checks=dict(checks),
        seconds=round(seconds, 1),
        files={
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in paths
        },
    )


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def is_current(name: str, entry: Entry | None, repository: Path) -> bool:
    """Whether the model is there as its recipe says: same revision, same sources, every file of its size."""
    recipe = RECIPES[name]
    if entry is None or entry.revision != recipe.revision:
        return False
    if {key: PACKAGES[key].sha256 for key in recipe.packages} != {
        key: source.get("sha256") for key, source in entry.sources.items()
    }:
        return False
    paths = {repository / name / file: info["bytes"] for file, info in entry.files.items()}
    return bool(paths) and all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
