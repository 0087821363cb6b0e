"""Git LFS: what lies in a clone whose large files were not fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BEGIN: Final = b"version https://git-lfs"


def pointer(file: Path) -> str:
    """Return what to tell of a file that is a pointer of Git LFS, "" of any other and of none at all."""
    try:
        with file.open("rb") as stream:
            begin = stream.read(len(_BEGIN))
    except OSError:
        return ""
    if begin != _BEGIN:
        return ""
    return f"'{file.name}' is a Git LFS pointer, not the file itself: run `git lfs pull`"
