"""A child process with a pipe, ended by closing it: what the empty server and the load generator run in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, Self


class Child:
    """A spawned process. Use as a context manager."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        """Start ``target`` with its end of the pipe and ``arguments``; wait for its first message."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.hello: Any = self.connection.recv()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid or 0

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.connection.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
