"""ONNX decoders over a tiny Llama, chunks for them, and what transformers computes instead."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_llama import LONGEST, VOCABULARY

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import Chunk, GenerationSpec
from headrace.runtimes.onnx import decoder
from headrace.runtimes.onnx.decoder import OnnxDecoder

BLOCK = 4
TOLERANCE = 2e-4


def load(path: Path, weights: Path | str = "", **settings: Any) -> OnnxDecoder:
    """A decoder with small blocks."""
    spec = {"max_tokens": LONGEST, "max_sequences": 6, "kv_tokens": 384, "block_tokens": BLOCK}
    generation = GenerationSpec(**{**spec, **settings})
    return decoder.load(
        InstanceSpec(
            model="tiny", runtime="onnx", path=str(path), generation=generation, weight_cache=str(weights)
        )
    )


def expected(reference: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits of every position, [len(tokens), vocabulary]."""
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = reference(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def agree(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Equal up to the order of sums, and the same most likely tokens."""
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)
    assert found.argmax(-1).tolist() == wanted.argmax(-1).tolist()


def table(slot: int) -> list[int]:
    """A block table that no other slot's shares blocks with."""
    return list(range(slot * 16, slot * 16 + 16))


def text(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return random.Random(seed).choices(range(3, VOCABULARY), k=length)


def whole(slot: int, tokens: Sequence[int], logits: int = 1) -> Chunk:
    """A prompt in one chunk."""
    return Chunk(slot, tokens, 0, table(slot), logits, fresh=True)
