"""Waiting until something has happened; a wrong wait is ended by the test's own timeout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Look every millisecond, and let the event loop run, until ``condition()`` holds."""
    while not condition():
        await asyncio.sleep(0.001)


def block_until(condition: Callable[[], object]) -> None:
    """Do nothing until ``condition()`` holds: for what other threads and processes do."""
    while not condition():
        time.sleep(0.02)
