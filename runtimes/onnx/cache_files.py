"""What the caches of rewritten graphs have in common: names that follow from contents, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_DIGITS: Final = 24


def digest(*parts: object) -> str:
    """Return a short name that changes with ``parts``, which JSON can write."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]


def state(file: Path) -> tuple[str, int, int]:
    """Return what tells one state of a file from another.

    Raises:
        OSError: it cannot be looked at.
    """
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns


def files_beside(model: Path) -> Sequence[Path]:
    """Return the files of a model's folder: its weights may lie in files of any name.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(file for file in model.parent.iterdir() if file.is_file())


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Wait until no other process holds ``lock``; makes its folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
