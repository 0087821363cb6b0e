"""Memory that is taken ahead of use, and when it is not."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from headrace.runtimes.generation import reserved
from headrace.runtimes.generation.reserved import Reserved, available_bytes

PIECE = 2 << 20


def test_nothing_is_taken_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than twice the size is left: the memory comes as it is used, as without preparation."""
    monkeypatch.setattr(reserved, "available_bytes", lambda: 2 * PIECE - 1)
    memory = Reserved(PIECE, huge=False)
    assert not memory.populate()
    monkeypatch.setattr(reserved, "available_bytes", lambda: 2 * PIECE)
    assert not memory.populate()
    assert Reserved(PIECE, huge=False).populate()


def test_a_kernel_that_cannot_populate_leaves_memory_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14 the advice is unknown."""
    monkeypatch.setattr(reserved, "_POPULATE_WRITE", 999)
    memory = Reserved(2 * PIECE, huge=True)
    assert not memory.populate()
    assert not memory.populate()
    array = memory.array("u1")
    array[:] = 7
    assert int(array.sum()) == 7 * 2 * PIECE


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    """What the control group has left, where that is less than what the machine has."""
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert available_bytes(tmp_path) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    free = psutil.virtual_memory().available
    assert free / 2 < available_bytes(tmp_path) < free * 2
    assert free / 2 < available_bytes(tmp_path / "none") < free * 2
