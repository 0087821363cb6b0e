"""What ``headrace tune`` says and does where its outcome cannot be kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headrace.server.repository.instances import Machine
from headrace.server.tuning import command
from headrace.server.tuning.cache import TuningCache
from headrace.server.tuning.candidates import Candidate, Layout
from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.command import Order, tune_models, warn_of_cache
from headrace.server.tuning.tuner import Outcome
from headrace.server.tuning.writing import BEGIN

Define = Any
PRESENT = Measurement(Candidate(Layout(4, 1, 8), 64), 80.0, 14.0, 1 << 29)
CHOSEN = Measurement(Candidate(Layout(2, 4, 8), 16), 99.5, 14.25, 1 << 28)
CONFIG = """max_batch_size: 64
input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
dynamic_batching { }"""


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an outcome at once."""

    async def tune(*_: Any, **__: Any) -> Outcome:
        return Outcome(CHOSEN, (PRESENT, CHOSEN), rounds=1, complete=True, disturbance=0.0)

    monkeypatch.setattr(command, "tune", tune)


@pytest.fixture
def console() -> Console:
    return Console(width=120, file=io.StringIO())


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def run(root: Path, cache: Path, console: Console, *, write: bool) -> bool:
    kept = TuningCache(cache, {"cpu": "a", "cores": "8"})
    return await tune_models(Order(["m"], [root], 1.0, write, 1.0), Machine(8), kept, console)


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize("write", [True, False])
async def test_what_cannot_be_kept_is_shown_and_written(
    define: Define, tmp_path: Path, console: Console, write: bool
) -> None:
    define(CONFIG)
    (tmp_path / "file").write_text("")
    assert not await run(tmp_path / "models", tmp_path / "file" / "cache", console, write=write)
    text = said(console)
    assert "2 x 4, alone 8" in text
    assert (
        "m: not kept in tuning_cache, so servers will not find it there: [Errno 20] Not a directory" in text
    )
    assert f"'{tmp_path / 'file' / 'cache'}'" in text
    assert "not tuned" not in text
    assert ("m: written to m/config.pbtxt" in text) is write
    assert (BEGIN in (tmp_path / "models" / "m" / "config.pbtxt").read_text()) is write


@pytest.mark.usefixtures("_measured")
async def test_what_is_kept_is_told(define: Define, tmp_path: Path, console: Console) -> None:
    define(CONFIG)
    assert await run(tmp_path / "models", tmp_path / "cache", console, write=True)
    assert f"m: kept in {tmp_path / 'cache' / 'm-1-'}" in said(console)
    assert "m: written to m/config.pbtxt" in said(console)


@pytest.mark.parametrize("name", ["file", "file/cache", "link", "/proc/x"])
def test_a_cache_that_cannot_be_made_is_told_beforehand(tmp_path: Path, console: Console, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    warn_of_cache(tmp_path / name, console)
    assert said(console).startswith(f"warning: tuning_cache: nothing can be kept in '{tmp_path / name}' (")
    assert "set HEADRACE_TUNING_CACHE to a folder that can be written to" in said(console)


def test_a_cache_that_can_be_made_is_not_made_yet(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "b", Path("a/b"), Path()):
        warn_of_cache(folder, console)
    assert said(console) == ""
    assert list(tmp_path.iterdir()) == []
