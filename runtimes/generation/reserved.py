"""Memory that is reserved at full size and taken from the machine as it is used, or while there is time."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray

_NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0
"""``MAP_NORESERVE``, which Python does not name: the reservation may exceed the machine's memory."""

_POPULATE_WRITE: Final = 23
"""``MADV_POPULATE_WRITE`` of Linux 5.14, which Python does not name: take memory, leave what is in it."""

_AT_ONCE: Final = 2 << 20
"""Bytes that one :meth:`Reserved.populate` takes: a huge page, up to 5 ms in a virtual machine whose host has
to find it."""

_CGROUP: Final = Path("/sys/fs/cgroup")


class Reserved:
    """Address space, zero where it is read before it is written."""

    def __init__(self, size: int, *, huge: bool) -> None:
        """Reserve ``size`` bytes, in huge pages if ``huge`` and the kernel has some."""
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self._populated = 0

    def array(self, dtype: DTypeLike) -> NDArray[Any]:
        """Return the memory as a flat array; its address never changes."""
        return np.frombuffer(self._memory, dtype)

    def populate(self) -> bool:
        """Take the next part of the memory; what is in it stays.

        Returns:
            False when there is nothing left to take, the kernel cannot do it, or less than twice of what is
            left is available.
        """
        start, size = self._populated, len(self._memory)
        if start >= size:
            return False
        if not start and available_bytes() < 2 * size:
            self._populated = size
            return False
        self._populated = min(start + _AT_ONCE, size)
        try:
            self._memory.madvise(_POPULATE_WRITE, start, self._populated - start)
        except OSError:
            # an older kernel, or no memory: it is taken as it is used
            self._populated = size
            return False
        return True

    def discard(self, start: int, size: int) -> None:
        """Give back ``size`` bytes from ``start`` on, whole pages; they are zero afterwards."""
        self._memory.madvise(mmap.MADV_DONTNEED, start, size)


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return how much more memory this process could take before something else has to give some up.

    ``cgroup`` is the folder where a container sees its own limit (cgroup v2).
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = (cgroup / "memory.current").read_text().strip()
    except OSError:
        return available
    return min(available, int(limit) - int(used)) if limit.isdecimal() else available
