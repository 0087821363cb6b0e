"""The same sentence encoder for every peer that brings none: tokenizers, ONNX Runtime, mean pooling.

It does what somebody who knows the model would write: texts of like length together, never a batch that is
padded to the longest of many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

LONGEST = 256
"""Tokens that a text is cut to."""

BATCH = 16
BATCH_TOKENS = 1024
"""Texts of a batch, and what they may have together after padding: eight of 128, sixteen short ones."""

PADDING = 1.25
"""Tokens of a batch with its padding ÷ without: a long text is not put together with a few short ones."""


class Encoder:
    """The model in one session of ``threads`` threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load ``model.onnx`` and ``tokenizer.json`` of ``folder``."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode; float32 [texts, 384], unit length."""
        encoded = [entry.ids for entry in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        vectors = np.empty((len(encoded), 384), np.float32)
        for rows in _batches(order, [len(ids) for ids in encoded]):
            vectors[rows] = self._encode([encoded[row] for row in rows])
        return vectors

    def _encode(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Pad, compute, average over the tokens, scale."""
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for row, values in enumerate(rows):
            ids[row, : len(values)] = values
            mask[row, : len(values)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(["last_hidden_state"], inputs)[0]
        weights = (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)
        pooled = np.matmul(weights[:, None, :], hidden)[:, 0]
        vectors: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows, sorted by length, where a batch is full or would be padded too much."""
    batch: list[int] = []
    tokens = 0
    for row in order:
        padded, tokens = (len(batch) + 1) * lengths[row], tokens + lengths[row]
        if batch and (len(batch) == BATCH or padded > min(BATCH_TOKENS, PADDING * tokens)):
            yield batch
            batch, tokens = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch
