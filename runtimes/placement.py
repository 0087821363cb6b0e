"""On which core a worker's thread runs.

The kernel often wakes a worker on the core where another instance of its model runs, and moves it some
milliseconds later: as long as a small batch takes. So while several run, each is bound to a core of its own.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec


class Placement:
    """Binds the thread that calls it; it begins where it may run anywhere.

    Nothing is ever bound where there are more cores than instances: of a container that may use a share of a
    large machine's time all models, and those of other containers, would meet on the first few.
    """

    def __init__(self, instance: InstanceSpec) -> None:
        """Choose the core of ``instance``."""
        self._all = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        cores = sorted(self._all)
        one_each = instance.device == "cpu" and instance.threads == 1 and 1 < len(cores) <= instance.instances
        self._own = {cores[instance.number % len(cores)]} if one_each else None
        self._bound = False

    def settle(self, *, beside: bool) -> None:
        """Stay on one core if others run ``beside`` this instance, else go anywhere."""
        if self._own is None or beside == self._bound:
            return
        self._bound = beside
        with contextlib.suppress(OSError):  # the cores of a container may change
            os.sched_setaffinity(0, self._own if beside else self._all)
