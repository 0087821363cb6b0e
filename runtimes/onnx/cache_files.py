"""What the caches of rewritten graphs have in common: names that follow from contents, locks, and an end.

Every entry has a record, a JSON object with the path of its ``model``, whose time is that of the last load.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ABANDONED: Final = 7 * 24 * 3600.0
"""Seconds since the last load, after which what was made of a model that is gone may be removed."""

RETRY: Final = 3600.0
"""Seconds after which what failed for a passing reason is tried again."""

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


def holds(record: Path, *, passing: bool) -> bool:
    """Whether what a record says still holds; writes down that its entry was used just now.

    Args:
        record: of an entry that is complete.
        passing: whether it says that something failed for a passing reason; that is tried again some time.

    Raises:
        OSError: it cannot be looked at.
    """
    if passing:
        return time.time() - record.stat().st_mtime <= RETRY
    with contextlib.suppress(OSError):  # another's folder, or one that can only be read
        os.utime(record)
    return True


def remove_abandoned(cache: Path, records: str) -> None:
    """Remove the entries of models that are gone and were not loaded for long; others go on.

    Model files that are only replaced need none of this: their next entry takes the place of the last.

    Args:
        cache: the folder.
        records: pattern of the records below it; names begin with the digest of a model's path and ``-``.
    """
    latest = time.time() - ABANDONED
    for record in cache.glob(records):
        try:
            gone = not Path(json.loads(record.read_bytes())["model"]).exists()
            if not gone or record.stat().st_mtime > latest:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        source, _, _ = record.relative_to(cache).parts[0].partition("-")
        for left in cache.glob(f"{source}-*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
