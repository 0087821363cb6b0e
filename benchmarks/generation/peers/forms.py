"""Finds the model in the form that a contender loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.environments import UnavailableError, there
from benchmarks.generation.peers.registry import Form

BUILD_SECONDS: Final = 600.0
FOLDER_MODEL: Final = "smollm2-torch"
CREATE: Final = "python -m benchmarks.generation.peers --create"


def locate(form: Form, repository: Path, model: str, peers: Path) -> Path:
    """Return the file or folder.

    Args:
        form: what is wanted.
        repository: the model repository; has ``model`` and the Hugging Face folder.
        model: the ONNX model that is served.
        peers: where environments and the peers' own models are.

    Raises:
        UnavailableError: it is not there, or could not be built.
    """
    if form == "onnx":
        return there(repository / model / "1" / "model.onnx", "run `make demo`")
    folder = there(repository / FOLDER_MODEL / "1" / "config.json", "run `make demo`").parent
    if form == "folder":
        return folder
    if form == "genai":
        return _genai(folder, peers)
    return there(peers / "models" / f"smollm2-{form.removeprefix('gguf-')}.gguf", f"run `{CREATE} {peers}`")


def interpreter(environment: str, peers: Path) -> Path:
    """Return the Python of a contender's environment; "" is this one.

    Raises:
        UnavailableError: the environment is not there.
    """
    if not environment:
        return Path(sys.executable)
    return there(peers / environment / "bin" / "python", f"run `{CREATE} {peers}`")


def _genai(folder: Path, peers: Path) -> Path:
    """Let onnxruntime-genai's builder write its folder, once; the output head only for last tokens."""
    target = peers / "models" / "genai-fp32"
    if (target / "genai_config.json").exists():
        return target
    command = [
        str(interpreter("hf", peers)), "-m", "onnxruntime_genai.models.builder", "-i", str(folder),
        "-o", str(target), "-c", str(peers / "models" / "cache"), "-p", "fp32", "-e", "cpu",
        "--extra_options", "prune_lm_head=true", "hf_token=false",
    ]  # fmt: skip
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode:
        raise UnavailableError(f"onnxruntime-genai's builder failed: {done.stdout[-300:].decode()}")
    return target
