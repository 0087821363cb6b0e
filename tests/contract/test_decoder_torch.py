"""The torch decoder's own code for the Llama family: transformers' tokens, however they are computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_decoders import SIZES, Oracle, Running, agrees, build, decoder, edit, prompts, run, step, table

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Chunk, GenerationSpec
from headrace.runtimes.torch.decoder import load
from headrace.runtimes.torch.generation.architecture import architecture, read_config
from headrace.runtimes.torch.generation.linear import has_bfloat16

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
VARIANTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with biases, wide heads and llama3 scaling": lambda: transformers.LlamaConfig(
        **SIZES, head_dim=16, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3
    ),
    "llama with yarn": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama with linear scaling": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2 with windows in some layers": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=12),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"), VARIANTS["llama"]())


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    build(tmp_path, VARIANTS[name]())
    assert architecture(read_config(tmp_path)) is not None, "it must be computed by the family's own code"
    agrees(tmp_path, decoder(tmp_path))


def test_older_configurations_give_the_rope_in_two_entries(tmp_path: Path) -> None:
    build(tmp_path, transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3))
    wanted = Oracle(tmp_path).generate(prompts()[1], 12)
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    assert run(decoder(tmp_path), prompts()[1:2], 12)[0].output == wanted


def test_weights_in_several_files(llama: Path, tmp_path: Path) -> None:
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(llama)
    module.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    agrees(tmp_path, decoder(tmp_path))


def test_slots_out_of_order_and_of_unlike_lengths_decode_together(llama: Path) -> None:
    oracle, tried = Oracle(llama), decoder(llama, slots=6)
    lengths, slots = (80, 3, 70, 2, 60), (5, 1, 4, 0, 2)
    texts = [[(7 * n + 3 * place) % 97 for place in range(length)] for n, length in enumerate(lengths)]
    wanted = [oracle.generate(text, 8) for text in texts]
    sequences = [Running(slots[n], text, table(n)) for n, text in enumerate(texts)]
    for sequence in sequences:
        step(tried, [sequence], 99)
    tried.release(sequences[1].slot)
    kept = [sequences[n] for n in (4, 0, 3, 2)]
    for _ in range(7):
        step(tried, kept, 99)
    assert [s.output for s in kept] == [wanted[n] for n in (4, 0, 3, 2)]


def test_logits_of_several_positions_come_in_the_order_of_the_chunks(llama: Path) -> None:
    oracle, tried = Oracle(llama), decoder(llama)
    first, second = prompts()[1], prompts()[3]
    tried.step([Chunk(2, first[:10], 0, table(0), 0, fresh=True)])
    found = tried.step(
        [
            Chunk(3, second, 0, table(1), 2, fresh=True),
            Chunk(2, first[10:14], 10, table(0), 4, fresh=False),
            Chunk(0, first[:1], 0, table(2), 1, fresh=True),
        ]
    )
    expected = [oracle.logits(second)[-2:], oracle.logits(first[:14])[10:], oracle.logits(first[:1])]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-3)
    found[:] = 0  # the caller may change them


def test_a_rejected_draft_leaves_no_trace(llama: Path) -> None:
    tried, text = decoder(llama), prompts()[1]
    wanted = Oracle(llama).generate(text, 10)
    sequence = Running(1, text, table(0))
    step(tried, [sequence], 99)
    for _ in range(9):
        guess = [sequence.tokens[-1], 11, 12, 13, 14, 15]
        logits = tried.step([Chunk(1, guess, sequence.computed, sequence.blocks, 6, fresh=False)])
        sequence.tokens.append(int(logits[0].argmax()))
        sequence.computed += 1
    assert sequence.output == wanted
    # The blocks that the guesses completed were completed again by the tokens that were kept.
    whole = (len(sequence.tokens) - 2) // 4 * 4
    again = Running(2, sequence.tokens[:-1], sequence.blocks, cached=whole)
    step(tried, [again], 99)
    assert again.tokens[-1] == wanted[-1]


def test_without_logits_there_are_no_rows(llama: Path) -> None:
    tried = decoder(llama)
    assert tried.step([Chunk(0, [1, 2], 0, table(0), 0, fresh=True)]).shape == (0, 97)
    assert tried.vocabulary_size == 97


def test_without_a_prefix_cache(llama: Path) -> None:
    spec = GenerationSpec(max_tokens=96, max_sequences=4, kv_tokens=384, block_tokens=4, prefix_cache=False)
    tried = load(InstanceSpec("tiny", "torch", str(llama), generation=spec))
    oracle = Oracle(llama)
    found = run(tried, prompts(), 8)
    assert [s.output for s in found] == [oracle.generate(text, 8) for text in prompts()]


def test_threads_are_those_of_the_instance(llama: Path) -> None:
    before = torch.get_num_threads()
    try:
        spec = GenerationSpec(max_tokens=8, max_sequences=1, kv_tokens=16)
        load(InstanceSpec("tiny", "torch", str(llama), threads=1, lone_threads=2, generation=spec))
        assert torch.get_num_threads() == 2
        load(InstanceSpec("tiny", "torch", str(llama), threads=1, generation=spec))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_is_close(llama: Path, tmp_path: Path, stored: torch.dtype) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: w.to(stored) for name, w in weights.items()}, tmp_path / "model.safetensors")
    expected = Oracle(tmp_path).logits(prompts()[3])[-1]
    chunk = [Chunk(0, prompts()[3], 0, table(0), 1, fresh=True)]
    if not has_bfloat16():
        with pytest.raises(ModelError, match="no bfloat16 arithmetic"):
            decoder(tmp_path, dtype="bfloat16")
        return
    exact, rounded = (decoder(tmp_path, dtype=d).step(chunk)[0] for d in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-3)
    error = np.abs(rounded - expected).max() / np.ptp(expected)
    assert 1e-4 < error < 0.05
    chosen = decoder(tmp_path).step(chunk)[0]
    np.testing.assert_array_equal(chosen, exact if stored == torch.float32 else rounded)


def refused(folder: Path, text: str, *, max_tokens: int = 96, dtype: str = "auto") -> None:
    with pytest.raises(ModelError, match=text):
        decoder(folder, max_tokens=max_tokens, dtype=dtype)


def test_refusals_say_what_is_wrong(llama: Path, tmp_path: Path) -> None:
    refused(tmp_path, "has no config.json")
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    refused(tmp_path, "sequences of 129 tokens are longer than the model's 128", max_tokens=129)
    refused(tmp_path, "option 'dtype' must be one of float32", dtype="int3")
    refused(tmp_path, "float16 is for GPUs", dtype="float16")
    edit(tmp_path, quantization_config={"quant_method": "gptq"})
    refused(tmp_path, "quantised")
    edit(tmp_path, quantization_config=None, intermediate_size=81)
    refused(tmp_path, r"gate_proj.weight' has shape \[80, 48\], config.json says \[81, 48\]")
    edit(tmp_path, intermediate_size="80")
    refused(tmp_path, "'intermediate_size' must be a whole number of at least 1, not '80'")
    edit(tmp_path, intermediate_size=80, num_hidden_layers=4)
    refused(tmp_path, "the checkpoint has no 'model.layers.3.input_layernorm.weight'")
    (tmp_path / "model.safetensors").write_bytes(b"none")
    refused(tmp_path, "'model.safetensors' of '.*' is damaged or incomplete")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "has no weights: looked for")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    refused(tmp_path, "which is outside the folder")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "config.json is no JSON object")
    with pytest.raises(ModelError, match="not set up for generation"):
        load(InstanceSpec("tiny", "torch", str(llama)))


def test_a_token_outside_the_vocabulary_fails_only_its_step(llama: Path) -> None:
    tried = decoder(llama)
    with pytest.raises(ModelError, match="torch failed"):
        tried.step([Chunk(0, [97], 0, table(0), 1, fresh=True)])
    assert tried.step([Chunk(0, [96], 0, table(0), 1, fresh=True)]).shape == (1, 97)
