"""What a load request brings along: a configuration, and files that replace the model's folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.config import parse_json
from headrace.server.repository.names import is_inside, lies_in

if TYPE_CHECKING:
    from headrace.server.repository.layout import ModelFolder

_PREFIX: Final = "file:"


@dataclass(frozen=True, slots=True)
class Override:
    """A checked override.

    Attributes:
        config: in place of config.pbtxt.
        files: path in the model's folder → content; in place of the whole folder unless empty.
        digest: of both; equal overrides have equal ones.
    """

    config: ModelConfig
    files: Mapping[str, bytes] = field(default_factory=dict)
    digest: str = ""


def parse_override(name: str, config: str | None, files: Mapping[str, bytes] | None) -> Override | None:
    """Check what a load request brings along; None when it is nothing.

    Args:
        name: of the model.
        config: JSON of ModelConfig.
        files: ``<version>/<path>``, with or without ``file:`` in front → content.

    Raises:
        InvalidArgumentError: the JSON is wrong, files come without a configuration, or a path leads out.
    """
    contents = {path.removeprefix(_PREFIX): data for path, data in (files or {}).items()}
    if config is None:
        if contents:
            raise InvalidArgumentError(
                f"failed to load '{name}', failed to poll from model repository: file overrides need the "
                "load parameter 'config'",
                model=name,
            )
        return None
    for path in contents:
        if not is_inside(path):
            raise InvalidArgumentError(
                f"failed to load '{name}', failed to poll from model repository: file override '{path}' must "
                "be <version>/<path> and must not contain path traversal characters",
                model=name,
            )
    digest = hashlib.sha256(config.encode())
    for path, data in sorted(contents.items()):
        digest.update(f"\0{path}\0{len(data)}\0".encode())
        digest.update(data)
    return Override(parse_json(config), contents, digest.hexdigest())


def write_folder(name: str, files: Mapping[str, bytes]) -> Path:
    """Write ``files`` as folder ``name`` of a new private repository and return that repository.

    Raises:
        InvalidArgumentError: one file would be the folder of another.
    """
    root = Path(tempfile.mkdtemp(prefix="headrace-load-"))
    try:
        for path, data in files.items():
            target = root / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    except OSError as error:
        remove_folder(root)
        raise InvalidArgumentError(
            f"failed to load '{name}': file override '{path}' cannot be written: {error.strerror}", model=name
        ) from error
    return root


def remove_folder(root: Path | None) -> None:
    """Remove what :func:`write_folder` made; None is nothing."""
    if root is not None:
        shutil.rmtree(root, ignore_errors=True)


def fingerprint(folder: ModelFolder, override: Override | None) -> str:
    """Return a text that changes when the override, a link or a file of ``folder`` (size or time) does."""
    digest = hashlib.sha256((override.digest if override is not None else "").encode())
    if override is None or not override.files:
        for path in _contents(folder):
            name = os.fsencode(path.relative_to(folder.path))
            if path.is_file():
                status = path.stat()
                digest.update(name + f"\0{status.st_mtime_ns}\0{status.st_size}\0".encode())
            elif path.is_symlink():
                digest.update(name + b"\0" + os.fsencode(path.readlink()) + b"\0")
    return digest.hexdigest()


def _contents(folder: ModelFolder) -> Iterator[Path]:
    """Yield what lies in ``folder``, in order; links to folders are followed as far as the model's may be."""
    seen: set[Path] = set()
    for base, folders, files in os.walk(folder.path, followlinks=True):
        path, real = Path(base), Path(base).resolve()
        if real in seen or not lies_in(path, folder.roots):
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (path / name for name in sorted([*folders, *files]))
