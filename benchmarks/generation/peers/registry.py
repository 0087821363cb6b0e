"""The contenders that are not ours, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

Form = Literal["onnx", "folder", "genai", "gguf-f16", "gguf-q4_1"]
"""What a contender loads: our graph, the Hugging Face folder, the builder's folder, a GGUF file."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender.

    Attributes:
        name: what ``--route`` takes and reports say.
        environment: folder of its virtual environment below ``--peers``; "" runs in this one.
        module: its file in this folder.
        form: of the model that it loads.
        static: whether it can only do batches of equal lengths that begin together.
        options: what its file is told beside the usual.
    """

    name: str
    environment: str
    module: str
    form: Form
    static: bool = True
    options: dict[str, Any] = field(default_factory=dict)


FLOOR: Final = "floor"
RAW: Final = "bare-onnx"
_ALL: Final = (
    Peer(FLOOR, "", "floor", "folder"),
    Peer(RAW, "", "bare_onnx", "onnx"),
    Peer("onnxruntime-genai", "hf", "onnxruntime_genai", "genai"),
    Peer("llama-f16", "llama", "llama_cpp", "gguf-f16"),
    Peer("llama-q4_1", "llama", "llama_cpp", "gguf-q4_1"),
    Peer("vllm", "vllm", "vllm", "folder", static=False),
    Peer("transformers-generate", "hf", "transformers_generate", "folder"),
    Peer("transformers-continuous", "hf", "transformers_continuous", "folder", static=False),
)
PEERS: Final = MappingProxyType({peer.name: peer for peer in _ALL})
