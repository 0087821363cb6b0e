"""Tiny text encoders as graphs, exported as those that are published are, and what is served of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_encoders import encoder

from headrace.runtimes.base import InstanceSpec, Run, TextSpec
from headrace.runtimes.convert.tracing import export
from headrace.runtimes.onnx.session import OnnxModel
from headrace.runtimes.text import TextEncoder

ROWS = ([2, 17, 50, 91, 3], [2, 3], [2, *range(20, 50), 3], [2, 60, 61, 3])


class Encoder(NamedTuple):
    graph: Path
    model: Any
    pad_id: int


def write_encoder(folder: Path, family: str, **more: Any) -> Encoder:
    """Export a tiny encoder in the way of those graphs that are published, with its config.json."""
    model = encoder(family, attn_implementation="eager", **more)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    export(
        lambda module, ids, mask: module(input_ids=ids, attention_mask=mask)["last_hidden_state"],
        model,
        folder / "model.onnx",
        inputs={"input_ids": np.full((2, 6), 7), "attention_mask": np.ones((2, 6), np.int64)},
        output="last_hidden_state",
        dynamic={name: ["rows", "width"] for name in ("input_ids", "attention_mask", "last_hidden_state")},
    )
    return Encoder(folder / "model.onnx", model, model.config.pad_token_id or 0)


def outcome(cache: Path) -> dict[str, Any]:
    (record,) = cache.glob("*.json")
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def instance(bert: Encoder, cache: Path, **more: Any) -> InstanceSpec:
    return InstanceSpec(
        "bert", "onnx", str(bert.graph), text=TextSpec("embed"), graph_cache=str(cache), **more
    )


def hidden_states(model: OnnxModel, pad_id: int, rows: Sequence[Sequence[int]] = ROWS) -> list[NDArray[Any]]:
    """The token embeddings of all rows, computed as one padded batch."""
    spec = TextSpec("embed", pad_id=pad_id)
    tokens = np.array([token for row in rows for token in row], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    inputs = {"token_ids": tokens, "lengths": lengths}
    flat = TextEncoder(model, spec).execute(inputs, ("token_embeddings",), Run())["token_embeddings"]
    return np.split(flat, np.cumsum(lengths)[:-1])


def expected(model: Any) -> list[NDArray[Any]]:
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row]))["last_hidden_state"][0].numpy() for row in ROWS]


def served_file(loaded: OnnxModel) -> Path:
    return Path(loaded._session._model_path)
