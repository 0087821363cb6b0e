"""Files of the weights of a Hugging Face folder: which there are, which is damaged, and why."""

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
    """The index of weights in several files: which file has which tensor."""

    weight_map: dict[str, str]


class FullIndex(Index, frozen=True):
    """The same with what transformers asks for."""

    metadata: dict[str, Any]


def weight_files(folder: Path, index: type[Index] = Index) -> list[str]:
    """Return the names of the safetensors of ``folder``, each checked; none where there are none.

    Only the headers are read: they say how long a file has to be. Libraries would refuse as well, but without
    the name of the file.

    Args:
        folder: with one file, or several and an index.
        index: what that has to have.

    Raises:
        ModelError: a file is damaged, incomplete, absent, or a pointer of Git LFS.
    """
    names: list[str] = []
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = _indexed(folder, index)
    for name in names:
        _check(folder, name)
    return names


def _indexed(folder: Path, index: type[Index]) -> list[str]:
    content = _read(folder, INDEX, None)
    try:
        names = sorted(set(msgspec.json.decode(content, type=index).weight_map.values()))
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
