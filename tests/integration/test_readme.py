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
CHANGING = frozenset({"id", "created", "cached_tokens"})
"""Members of an answer that differ from one request to the next."""


def approximately(value: object) -> object:
    """Replace floats, at any depth, by approximate ones: trained models differ a little."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [approximately(inner) for inner in value]
    return pytest.approx(value, rel=1e-2, abs=1e-2) if isinstance(value, float) else value


def constant(value: object) -> object:
    """Replace, at any depth, what changes by its type."""
    if isinstance(value, dict):
        return {key: type(inner) if key in CHANGING else constant(inner) for key, inner in value.items()}
    return [constant(inner) for inner in value] if isinstance(value, list) else value


def request_of(command: str) -> urllib.request.Request:
    """Return what curl would send, a form content type where no other is given included."""
    curl, url, *flags = shlex.split(command)
    given = list(zip(flags[::2], flags[1::2], strict=True))
    headers = dict(value.split(": ", 1) for flag, value in given if flag == "-H")
    (body,) = (value for flag, value in given if flag == "-d")
    assert (curl, {flag for flag, _ in given} - {"-H", "-d"}) == ("curl", set())
    return urllib.request.Request(url, body.encode(), headers)


def test_the_readme_has_a_request_for_each_protocol() -> None:
    text = " ".join(command for command, _ in COMMANDS)
    for path in ("/infer", "/v1/chat/completions", "/v1/embeddings", "/rerank", "/classify", "/predict"):
        assert path in text
    (example,) = PYTHON
    for stub in ("EmbeddingServiceStub", "GenerationServiceStub", "tei_pb2_grpc.EmbedStub"):
        assert stub in example


@pytest.mark.parametrize(("command", "answer"), COMMANDS)
def test_a_command_gives_its_answer(server: ServerProcess, command: str, answer: str) -> None:
    # As curl would send it, without asking for curl to be installed.
    request = request_of(command.replace("127.0.0.1:8000", server.http))
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.loads(response.read())
    assert constant(found) == approximately(constant(json.loads(answer)))


def test_the_python_example_prints_what_its_comments_say(server: ServerProcess, tmp_path: Path) -> None:
    (example,) = PYTHON
    script = tmp_path / "example.py"
    script.write_text(example.replace("127.0.0.1:8001", server.grpc))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    expected = re.findall(r"print\(.*\)  # (.+)$", example, re.MULTILINE)
    assert len(expected) == example.count("print(")
    assert done.stdout.splitlines() == expected
