"""Where models lie: repositories of model folders, and the versions in one.

A folder ``<repository>/<model>/`` is Triton's (``config.pbtxt`` and integer version folders) or holds the
model's files itself, as a Hugging Face download does; that is version 1. The real path of whatever is used
lies in one of the repositories: a link that leads out of all of them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.server.errors import LoadFailedError, ModelNotFoundError
from headrace.server.repository.names import (
    check_model_name,
    is_inside,
    is_model_name,
    lies_in,
    version_of_folder,
)

CONFIG_FILE: Final = "config.pbtxt"
_MODEL_FILES: Final = (
    "config.json",
    "model.onnx",
    "onnx/model.onnx",
    "model.pt",
    "model.pt2",
    "model.safetensors",
)
_LISTED: Final = 12
"""Names that a message lists at most."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder; messages call its files ``<model>/<path in the folder>``.

    Attributes:
        name: of the folder and the model.
        path: of the folder.
        versions: version number → its folder, ascending. For a model that lies directly in its folder this
            is version 1 → ``path``.
        roots: resolved folders that no file of the model may lie out of.
    """

    name: str
    path: Path
    versions: Mapping[int, Path]
    roots: list[Path] = field(repr=False)

    @property
    def config_file(self) -> Path:
        """Where the configuration is, if there is one."""
        return self.path / CONFIG_FILE

    def file(self, base: Path, name: str, setting: str) -> Path:
        """Return the file ``name`` below ``base``, as the configuration's field ``setting`` asks.

        Raises:
            LoadFailedError: the name leads out of the folder, or no such file is there.
        """
        path = base / name
        if not is_inside(name):
            raise LoadFailedError(f"{setting}: '{name}' leads out of the model's folder", model=self.name)
        if not path.exists():
            raise LoadFailedError(
                f"{setting}: there is no file '{self.label(path)}'; the folder has {contents(base)}",
                model=self.name,
            )
        if not lies_in(path, self.roots):
            raise LoadFailedError(
                f"{setting}: '{self.label(path)}' is a link that leads out of the model repositories",
                model=self.name,
            )
        return path

    def label(self, path: Path) -> str:
        """Return what messages call ``path``: nothing above the model's folder is told."""
        return os.path.relpath(path, self.path.parent)


def model_names(roots: Sequence[Path]) -> list[str]:
    """Return the names of all model folders: repositories in their order, names sorted within each."""
    names: dict[str, None] = {}
    for root in roots:
        try:
            with os.scandir(root) as entries:
                found = sorted(
                    entry.name for entry in entries if is_model_name(entry.name) and entry.is_dir()
                )
        except OSError:
            continue  # a repository that is missing has no models; `open_model` says so for each name asked
        names |= dict.fromkeys(found)
    return list(names)


def has_model(name: str, roots: Sequence[Path]) -> bool:
    """Whether a repository has a folder of this checked name."""
    return any((root / name).is_dir() for root in roots)


def holds_model(path: Path) -> bool:
    """Whether a folder is itself a model's, not a repository of such folders."""
    if (path / CONFIG_FILE).exists() or _has_files(path):
        return True
    return any(version_of_folder(entry.name) and entry.is_dir() for entry in path.iterdir())


def open_model(name: str, roots: Sequence[Path]) -> ModelFolder:
    """Look for the folder of model ``name``.

    Raises:
        InvalidArgumentError: the name cannot be one of a model.
        ModelNotFoundError: no repository has it.
        LoadFailedError: several have it, it lies out of the repositories, or it has no versions.
    """
    check_model_name(name)
    found = [root for root in roots if (root / name).is_dir()]
    if not found:
        raise ModelNotFoundError(
            f"failed to load '{name}', failed to poll from model repository: there is no folder '{name}' in "
            f"{_listed([root.name for root in roots])}",
            model=name,
        )
    if len(found) > 1:
        raise LoadFailedError(
            f"model '{name}' is in more than one repository: "
            f"{_listed([f'{root.name}/{name}' for root in found])}; rename or remove all but one",
            model=name,
        )
    resolved = [root.resolve() for root in roots]
    path = found[0] / name
    if not lies_in(path, resolved):
        raise LoadFailedError(
            f"{name}: the folder is a link that leads out of the model repositories; "
            "add the repository it leads to, or copy the model",
            model=name,
        )
    return ModelFolder(name, path, _versions(path, resolved), resolved)


def contents(folder: Path) -> str:
    """List a folder for a message."""
    return _listed(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "nothing"


def _versions(path: Path, roots: list[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for entry in path.iterdir():
        number = version_of_folder(entry.name)
        if number is None or not entry.is_dir():
            continue
        if not lies_in(entry, roots):
            raise LoadFailedError(
                f"{path.name}/{entry.name}: the version folder is a link that leads out of the repositories",
                model=path.name,
            )
        found[number] = entry
    if found:
        return dict(sorted(found.items()))
    if _has_files(path):
        return {1: path}
    raise LoadFailedError(
        f"{path.name}: the model has no version folder (named by an integer such as '1') and no model file "
        f"such as {', '.join(_MODEL_FILES)}; the folder has {contents(path)}",
        model=path.name,
    )


def _has_files(path: Path) -> bool:
    return any((path / name).exists() for name in _MODEL_FILES)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_LISTED])
    more = len(names) - _LISTED
    return (shown or "nothing") + (f" and {more} more" if more > 0 else "")
