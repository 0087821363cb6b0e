"""What ``config.json`` says about a model of the Llama family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch.generation.rope import KNOWN

FAMILY: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Architectures that differ only in biases, norms of queries and keys, and sliding windows."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and variations of a Llama-like decoder.

    Attributes:
        vocabulary: rows of the embedding.
        hidden: width of a token's state.
        layers: number of layers.
        heads: query heads; ``kv_heads`` divides it.
        kv_heads: heads of keys and values.
        head_width: width of a head.
        inner: width of the feed-forward.
        epsilon: of the RMS norms.
        longest: ``max_position_embeddings``.
        rope: ``rope_parameters`` (``rope_theta``, ``rope_type``, ...).
        windows: sliding window of each layer, 0 for none.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output has one.
        mlp_bias: whether the feed-forward has.
        head_norms: whether queries and keys are normed per head (Qwen3).
        tied: whether the embedding is the output head too.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    epsilon: float
    longest: int
    rope: Mapping[str, Any]
    windows: tuple[int, ...]
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norms: bool
    tied: bool


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of ``folder``.

    Raises:
        ModelError: it is missing, or no JSON object.
    """
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    except OSError as error:
        msg = f"'{folder.name}' has no config.json"
        raise ModelError(msg) from error
    except msgspec.MsgspecError as error:
        msg = f"config.json is no JSON object: {error}"
        raise ModelError(msg) from error


def architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Read ``config``; None when it is not of the family, or has a variation that the family's code has not.

    Raises:
        ModelError: a size is missing or no number.
    """
    names: list[str] = config.get("architectures") or []
    if len(names) != 1 or names[0] not in FAMILY:
        return None
    rope = _rope(config)
    known = (
        rope.get("rope_type", "default") in KNOWN
        and float(rope.get("partial_rotary_factor", 1.0)) == 1.0
        and config.get("hidden_act", "silu") == "silu"
        and int(config.get("pretraining_tp") or 1) == 1
    )
    windows = _windows(names[0], config)
    if not known or windows is None:
        return None
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    bias = bool(config.get("attention_bias", False))
    return Architecture(
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads,
        head_width=_size(config, "head_dim") if config.get("head_dim") else hidden // heads,
        inner=_size(config, "intermediate_size"),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        longest=_size(config, "max_position_embeddings"),
        rope=rope,
        windows=windows,
        qkv_bias=names[0] == "Qwen2ForCausalLM" or bias,
        out_bias=bias and names[0] != "Qwen2ForCausalLM",
        mlp_bias=bool(config.get("mlp_bias", False)),
        head_norms=names[0] == "Qwen3ForCausalLM",
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope's parameters: one object since transformers 5, before that a base and a scaling."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    return rope


def _windows(name: str, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    layers, window = _size(config, "num_hidden_layers"), int(config.get("sliding_window") or 0)
    kinds = config.get("layer_types")
    if name == "LlamaForCausalLM":
        return None if kinds and set(kinds) != {"full_attention"} else (0,) * layers
    if name == "MistralForCausalLM":
        return None if kinds else (window,) * layers
    if not config.get("use_sliding_window", False):
        window = 0
    if kinds:
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            return None
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    full = int(config.get("max_window_layers", layers))
    return tuple(window if layer >= full else 0 for layer in range(layers))


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        msg = f"config.json: '{name}' must be a whole number of at least 1, not {value!r}"
        raise ModelError(msg)
    return value
