"""Models that transformers computes with the engine's attention: its own tokens, or a refusal at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_decoders import SIZES, agrees, build, decoder, edit

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch.generation.architecture import architecture, read_config
from headrace.runtimes.torch.generation.visible import Visible, describe

GPT2: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
SERVED: dict[str, Callable[[], Any]] = {
    "gemma": lambda: transformers.GemmaConfig(**SIZES, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=3.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, layer_types=MIXED
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, sliding_window=9),
    "granite": lambda: transformers.GraniteConfig(**SIZES, attention_multiplier=0.2, logits_scaling=2.0),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**HEADS),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: transformers.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=40),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(**SIZES | EXPERTS | {"head_dim": 12}),
    "gpt-oss, with sinks": lambda: transformers.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=9
    ),
    "deepseek, with values of another width": lambda: transformers.DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 6},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        first_k_dense_replace=1,
    ),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "alibi inside the model": (
        lambda: transformers.BloomConfig(vocab_size=97, hidden_size=48, n_layer=2, n_head=6),
        "BloomForCausalLM cannot be served .* do not take attention from outside",
    ),
    "recurrent state": (
        lambda: transformers.MambaConfig(vocab_size=97, hidden_size=48, num_hidden_layers=2),
        "do not take attention from outside",
    ),
    "convolutions between attentions": (
        lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
        "other logits .* mixes tokens by other means",
    ),
    "attention in chunks": (
        lambda: transformers.Llama4TextConfig(
            **SIZES, head_dim=8, num_local_experts=2, attention_chunk_size=8, intermediate_size_mlp=80
        ),
        "neither causal nor a sliding window",
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    build(tmp_path, SERVED[name]())
    assert architecture(read_config(tmp_path)) is None, "it must be computed by transformers"
    agrees(tmp_path, decoder(tmp_path))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_cannot_compute_is_refused_at_load(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    build(tmp_path, config())
    with pytest.raises(ModelError, match=reason):
        decoder(tmp_path)


def test_a_rope_that_changes_with_the_longest_sequence_has_a_limit(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    build(
        tmp_path,
        transformers.Phi3Config(**SIZES, original_max_position_embeddings=80, rope_parameters=rope),
    )
    with pytest.raises(ModelError, match="rope_type longrope sequences may have at most 80 tokens, not 81"):
        decoder(tmp_path, max_tokens=81)
    assert decoder(tmp_path, max_tokens=80).vocabulary_size == 97


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    build(tmp_path, SERVED["gpt2"]())
    edit(tmp_path, n_layer=4)
    with pytest.raises(ModelError, match=r"weights are missing .* transformer.h.3"):
        decoder(tmp_path)


def test_too_long_sequences_are_refused(tmp_path: Path) -> None:
    build(tmp_path, SERVED["gpt2"]())
    with pytest.raises(ModelError, match="sequences of 129 tokens are longer than the model's 128"):
        decoder(tmp_path, max_tokens=129)


def test_a_model_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    build(tmp_path, SERVED["gpt2"]())
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    edit(tmp_path, model_type="own", architectures=["Own"], auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ModelError, match="transformers cannot load"):
        decoder(tmp_path)


@pytest.mark.parametrize(
    ("sees", "keywords", "expected"),
    [
        (lambda query, key: key <= query, {}, Visible()),
        (lambda query, key: (key <= query) & (key > query - 5), {"local_size": 5}, Visible(5)),
        (lambda query, key: (key <= query) & (key > query - 5), {"local_size": 6}, None),
        (lambda query, key: key <= query, {"local_size": 5}, None),
        (lambda query, key: (key <= query) & (key // 5 == query // 5), {"local_size": 5}, None),
        (lambda query, key: key <= query, {"use_vmap": True}, None),
        (lambda query, _: query >= 0, {}, Visible(causal=False)),
        (lambda query, key: (query - key).abs() <= 5, {"local_size": 5}, Visible(5, causal=False)),
        (lambda query, key: (query - key).abs() < 5, {"local_size": 5}, None),
        (lambda query, _: query >= 0, {"local_size": 5}, None),
    ],
)
def test_masks_are_described(
    sees: Callable[..., torch.Tensor], keywords: dict[str, Any], expected: Visible | None
) -> None:
    found = describe(mask_function=lambda _batch, _head, query, key: sees(query, key), **keywords)
    assert found == expected if expected else not found.known
