"""Growable shared memory between the server and one worker.

A region is an anonymous memory file (``memfd_create``): it has no name that could be left behind, and
its pages are freed when both processes have closed it. The server creates one input and one output
region per slot and the worker inherits the descriptors. Either side may grow a region; the other maps
again when it is told of a larger size. A slot's regions belong to the batch that holds the slot, so no
allocator and no lock are needed.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

_GRANULE: Final = 1 << 16


class Region:
    """A shared block of memory that grows on demand."""

    def __init__(self, fd: int) -> None:
        """Wrap an inherited or created memory file; the region owns the descriptor."""
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, label: str) -> Region:
        """Create an empty region; ``label`` only shows in /proc for debugging."""
        return cls(os.memfd_create(label, 0))

    def view(self, size: int) -> memoryview:
        """Return the first ``size`` bytes, growing the region when it is smaller.

        The caller must release the view (or let it go) before the next call that grows the region.
        """
        if self._map is None or len(self._map) < size:
            capacity = max(size, 1)
            capacity = (capacity + capacity // 4 + _GRANULE - 1) // _GRANULE * _GRANULE
            actual = os.fstat(self.fd).st_size
            if actual < capacity and actual < size:
                os.ftruncate(self.fd, capacity)
                actual = capacity
            # Replacing (not closing) the old map: arrays that still view it keep it alive.
            self._map = mmap.mmap(self.fd, actual)
        return memoryview(self._map)[:size]

    def close(self) -> None:
        """Drop the mapping and the descriptor."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
