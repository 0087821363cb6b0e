"""What a start says: of repositories that are not there, and of models that do not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import block_until

from running import get_json, start_server, stop_server


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "--load-models", "addsub", "--model-repository", ".cache/demo"],
        ["tune", "addsub"],
        ["check", ".cache/demo"],
    ],
)
def test_a_repository_that_is_not_there_is_refused(arguments: list[str], tmp_path: Path) -> None:
    run = [sys.executable, "-m", "headrace.server.cli", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    taker = "`headrace check`" if arguments[0] == "check" else "--model-repository"
    assert done.stderr == (
        f"headrace: there is no folder '.cache/demo': give {taker} an existing folder, or run "
        "`headrace pull demo` for the default one, .cache/demo\n"
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_models_that_failed_are_told_when_the_server_is_ready(demo_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"this is not a graph")
    log = tmp_path / "log"
    server = start_server(
        "--model-repository", str(demo_repository), "--model-repository", str(tmp_path),
        "--load-models", "addsub", "--load-models", "broken", "--load-models", "nope", log=log,
    )  # fmt: skip
    try:
        assert get_json(f"{server.url}/v2/health/ready")[0] == 400
        block_until(lambda: "\n  failed: broken, nope (the log says why); " in log.read_text())
    finally:
        assert stop_server(server) == 0
    (line,) = [line for line in log.read_text().splitlines() if '"server ready"' in line]
    entry = json.loads(line)
    assert (entry["models"], entry["failed"]) == (["addsub"], ["broken", "nope"])


def test_an_empty_repository_is_served_with_nothing_failed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    log = tmp_path / "log"
    server = start_server("--model-repository", str(tmp_path / "models"), log=log)
    try:
        assert get_json(f"{server.url}/v2/health/ready")[0] == 200
    finally:
        assert stop_server(server) == 0
    text = log.read_text()
    assert '"models": [], "failed": [], "event": "server ready"' in text
    assert "  failed: " not in text
