"""What ``config.json`` of a text encoder says about its attention: what no tool can tell from the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "config.json"
_INNER: Final = frozenset({"onnx", "model.onnx"})
"""Folders inside a version folder that a model file may lie in (``files.find_model``)."""

_HEADS: Final = ("num_attention_heads", "n_heads", "n_head")
_WIDTH: Final = ("hidden_size", "dim", "n_embd")
_WINDOWS: Final = ("sliding_window", "local_attention", "attention_window")


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Sizes of a text encoder; 0 where the files do not say.

    Attributes:
        heads: attention heads of a layer.
        width: elements of a token's hidden state.
        vocabulary: token ids are below it.
        positions: places in the table of positions, a few of which a family may not use.
        types: token types.
        windowed: some layers only see a part of a long text.
    """

    heads: int = 0
    width: int = 0
    vocabulary: int = 0
    positions: int = 0
    types: int = 0
    windowed: bool = False


def find_config(model: Path) -> Path | None:
    """Return the ``config.json`` of a model file: in its version folder, else in the model's folder."""
    folder = model.parent
    while folder.name in _INNER:
        folder = folder.parent
    for place in (folder, folder.parent) if folder.name.isdecimal() else (folder,):
        if (place / CONFIG).is_file():
            return place / CONFIG
    return None


def read_facts(config: Path | None) -> EncoderFacts:
    """Read ``config``; nothing is known where it is missing or no JSON object."""
    try:
        found = {} if config is None else json.loads(config.read_bytes())
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict):
        return EncoderFacts()
    return EncoderFacts(
        heads=_number(found, *_HEADS),
        width=_number(found, *_WIDTH),
        vocabulary=_number(found, "vocab_size"),
        positions=_number(found, "max_position_embeddings", "n_positions"),
        types=_number(found, "type_vocab_size"),
        windowed=any(found.get(name) for name in _WINDOWS),
    )


def _number(found: Mapping[str, Any], *names: str) -> int:
    """Return the first of ``names`` that is a positive whole number, else 0."""
    values = (found.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)
