"""Every program in examples/ runs as it stands and prints what it is about."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from running import ROOT

EXAMPLES = ROOT / "examples"
PRINTED = {
    "openai_chat.py": ("Paris", "'city': ", "'capital': "),
    "huggingface_generate.py": ("Paris", "(1, 384)", "positive 0.85"),
    "retrieve_and_answer.py": ("A headrace is the channel", "-> "),
    "grpc_generate.py": (" Paris", "DEADLINE_EXCEEDED"),
    "triton_infer.py": ("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]", "Paris"),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in table for name in PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example(server: Any, name: str) -> None:
    address = server.grpc if name.startswith(("grpc", "triton")) else server.url
    command = [sys.executable, str(EXAMPLES / name), address]
    # Tests that load models with transformers keep this process offline, loopback included.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    for text in PRINTED[name]:
        assert text in done.stdout, done.stdout
