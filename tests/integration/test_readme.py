"""The README's requests, run as printed (addresses aside), give the printed answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from running import ROOT, ServerProcess

README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
COMMANDS = [pair for block in CONSOLE for pair in re.findall(r"^\$ (.+)\n(.+)$", block, re.MULTILINE)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def approximately(value: object) -> object:
    """Replace floats, at any depth, by approximate ones: trained models differ a little."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [approximately(inner) for inner in value]
    return pytest.approx(value, rel=1e-2, abs=1e-2) if isinstance(value, float) else value


def test_the_readme_has_a_request_for_each_protocol() -> None:
    text = " ".join(command for command, _ in COMMANDS)
    for path in ("/infer", "/v1/embeddings", "/rerank", "/classify", "/predict"):
        assert path in text


@pytest.mark.parametrize(("command", "answer"), COMMANDS)
def test_a_command_gives_its_answer(server: ServerProcess, command: str, answer: str) -> None:
    # As curl would send it (a form content type included), without asking for curl to be installed.
    curl, url, flag, body = shlex.split(command.replace("127.0.0.1:8000", server.http))
    assert (curl, flag) == ("curl", "-d")
    with urllib.request.urlopen(url, body.encode(), timeout=60) as response:
        assert json.loads(response.read()) == approximately(json.loads(answer))


def test_the_python_example_prints_what_its_comment_says(server: ServerProcess, tmp_path: Path) -> None:
    (example,) = PYTHON
    script = tmp_path / "example.py"
    script.write_text(example.replace("127.0.0.1:8001", server.grpc))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    expected = example.rsplit("# ", 1)[1].strip()
    assert done.stdout.strip() == expected
