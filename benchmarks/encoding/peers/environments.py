"""The environments of the peers; MLServer, KServe and Triton get the ONNX Runtime that Headrace runs."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.environments import TORCH, Environment, Say, make

_MODEL: Final = tuple(f"{name}=={version(name)}" for name in ("onnxruntime", "tokenizers"))
"""Graph and tokenizer are run by the same code everywhere: only the servers differ."""

ENVIRONMENTS: Final = (
    Environment(
        "triton",
        "Triton 2.51 as nvidia-pytriton brings it",
        "import onnxruntime, pytriton, tokenizers",
        (("nvidia-pytriton==0.7.0", *_MODEL),),
    ),
    Environment(
        "mlserver", "MLServer", "import mlserver, onnxruntime, tokenizers", (("mlserver==1.7.1", *_MODEL),)
    ),
    Environment("kserve", "KServe", "import kserve, onnxruntime, tokenizers", (("kserve==0.21.0", *_MODEL),)),
    Environment(
        "infinity",
        "infinity-emb with torch",
        "import infinity_emb.infinity_server, sentence_transformers, torch",
        ((f"torch=={TORCH}",), ("-c", "{torch}", "infinity-emb[server,torch]==0.0.78")),
    ),
)


def create(folder: Path, wanted: list[str], say: Say) -> None:
    """Make the environments ``wanted`` (all for an empty list) below ``folder``.

    Raises:
        subprocess.CalledProcessError: a step failed; its output is in ``folder``'s log of that environment.
    """
    for environment in ENVIRONMENTS:
        if not wanted or environment.name in wanted:
            make(environment, folder, say)
