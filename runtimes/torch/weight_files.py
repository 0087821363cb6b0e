"""Weights of a Hugging Face folder before transformers reads them: which file is damaged, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors

from headrace.runtimes.base import ModelError
from headrace.runtimes.lfs import pointer

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


class Index(msgspec.Struct, frozen=True):
    """The index of weights in several files, as far as transformers asks for it."""

    metadata: dict[str, Any]
    weight_map: dict[str, str]


def check_weight_files(folder: Path) -> None:
    """Check the safetensors that transformers would read from ``folder``; where there are none, do nothing.

    Only the headers are read: they say how long a file has to be. transformers would refuse as well, but
    without the name of the file.

    Raises:
        ModelError: a file is damaged, incomplete, absent, or a pointer of Git LFS.
    """
    if (folder / SINGLE).is_file():
        _check(folder, SINGLE)
    elif (folder / INDEX).is_file():
        for name in _indexed(folder):
            _check(folder, name)


def _indexed(folder: Path) -> list[str]:
    content = _read(folder, INDEX, None)
    try:
        names = sorted(set(msgspec.json.decode(content, type=Index).weight_map.values()))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(folder, INDEX, error) from error
    if not names:
        msg = "its weight_map is empty"
        raise _damaged(folder, INDEX, msg)
    for name in names:
        if Path(name).name != name:
            msg = f"'{INDEX}' of '{folder.name}' names '{name}', which is outside the folder"
            raise ModelError(msg)
        if not (folder / name).is_file():
            msg = f"'{name}' is not in '{folder.name}', but '{INDEX}' names it: download it"
            raise ModelError(msg)
    return names


def _check(folder: Path, name: str) -> None:
    _read(folder, name, 1)
    try:
        with safetensors.safe_open(str(folder / name), framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise _damaged(folder, name, error) from error


def _read(folder: Path, name: str, size: int | None) -> bytes:
    """Return the first ``size`` bytes of a file, None for all."""
    if said := pointer(folder / name):
        raise ModelError(said)
    try:
        with (folder / name).open("rb") as file:
            return file.read(size)
    except OSError as error:
        msg = f"'{name}' of '{folder.name}' cannot be read: {error.strerror}"
        raise ModelError(msg) from error


def _damaged(folder: Path, name: str, reason: object) -> ModelError:
    return ModelError(f"'{name}' of '{folder.name}' is damaged or incomplete ({reason}): download it again")
