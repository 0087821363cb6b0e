"""Checks of names and versions that come from outside: requests, and the configuration of a model."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

from headrace.server.errors import InvalidArgumentError

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_VERSION_FOLDER: Final = re.compile(r"[1-9][0-9]{0,17}")
_LARGEST: Final = 2**63 - 1
_LONGEST_NAME: Final = 255
"""Bytes that every file system takes in a name."""
_SHOWN: Final = 80


def check_model_name(name: str) -> None:
    """Refuse a name that cannot be the name of a folder directly in a repository.

    Raises:
        InvalidArgumentError: the name is empty, hidden, too long, or would lead out of the repository.
    """
    if not name:
        raise InvalidArgumentError("Model name cannot be empty. Please enter a valid name to deploy.")
    if _is_too_long(name):
        raise InvalidArgumentError(
            f"model name '{name[:_SHOWN]}…' is longer than the {_LONGEST_NAME} bytes that a folder's may have"
        )
    if not is_model_name(name):
        raise InvalidArgumentError(
            f"invalid model name '{name}', model name must not contain path traversal characters", model=name
        )


def is_model_name(name: str) -> bool:
    """Whether a folder of this name is a model: one plain path component that is not hidden."""
    if not name or name.startswith(".") or _is_too_long(name):
        return False
    return not any(char in "/\\" or char < " " for char in name)


def _is_too_long(name: str) -> bool:
    return len(name.encode(errors="surrogateescape")) > _LONGEST_NAME


def parse_version(text: str) -> int | None:
    """Read a version as requests give it; None stands for the newest.

    The texts of the errors are Triton's.

    Raises:
        InvalidArgumentError: it is not an integer, or negative.
    """
    if not text:
        return None
    if not _INTEGER.fullmatch(text) or int(text) > _LARGEST:
        raise InvalidArgumentError(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    version = int(text)
    if version < 0:
        raise InvalidArgumentError(
            f"invalid model version specified '{text}' , version should be an integral value > 0"
        )
    return version


def version_of_folder(name: str) -> int | None:
    """Return the version that a folder name stands for; None for leading zeros and anything but digits."""
    return int(name) if _VERSION_FOLDER.fullmatch(name) else None


def is_inside(name: str) -> bool:
    """Whether a path from a request or a configuration is relative and never goes up."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def lies_in(path: Path, roots: list[Path]) -> bool:
    """Whether ``path``, with its links followed, lies in one of ``roots`` (themselves resolved)."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(root) for root in roots)
