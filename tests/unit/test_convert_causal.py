"""Converting causal language models: GGUF reading, weight quantisation, quality, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_llama import write_tiny_llama
from typer.testing import CliRunner

from headrace.runtimes.convert import causal
from headrace.runtimes.convert.causal_blocks import BLOCK, Blocks, nearest, shifted
from headrace.runtimes.convert.causal_graph import adapt
from headrace.runtimes.convert.causal_quality import Quality, compare, passes
from headrace.runtimes.convert.causal_quantize import quantize
from headrace.runtimes.convert.gguf_llama import GgufLlama
from headrace.runtimes.convert.job import ConversionError

Floats = npt.NDArray[np.float32]


def weights(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 0.1, (rows, columns)).astype(np.float32)


def quantised_before(rows: int, columns: int) -> Floats:
    """4-bit codes with a scale and a minimum that is no multiple of it, as GGUF's Q4_1 has."""
    generator = np.random.default_rng(1)
    shape = (rows // BLOCK, BLOCK, columns)
    codes = generator.integers(0, 16, shape)
    codes[:, 0], codes[:, 1] = 0, 15
    scales = generator.uniform(0.01, 0.02, (shape[0], 1, columns))
    minima = generator.uniform(-0.2, -0.1, (shape[0], 1, columns))
    return (codes * scales + minima).reshape(rows, columns).astype(np.float32)


def product(matrix: Floats, inputs: Floats, bits: int) -> Floats:
    """``inputs`` @ ``matrix`` by the graph that ``quantize`` makes."""
    from onnxruntime import InferenceSession, SessionOptions

    shape: list[str | int] = ["batch", "sequence"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape, len(matrix)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = quantize(helper.make_model(graph, opset_imports=opsets, ir_version=10), bits, say=lambda _: None)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1  # products in float32: only the weights are rounded
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Floats = session.run(["y"], {"x": inputs})[0]
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [64, 96, 80])
def test_the_runtime_computes_what_the_codes_stand_for(bits: int, rows: int) -> None:
    """Even, odd and partly filled blocks are stored as ONNX Runtime reads them."""
    matrix, inputs = weights(rows, 24), weights(6, rows, 2).reshape(2, 3, rows)
    np.testing.assert_allclose(
        product(matrix, inputs, bits), inputs @ nearest(matrix, bits).values(), atol=1e-5
    )


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 255)])
def test_rounding_is_to_the_nearest_code(bits: int, steps: int) -> None:
    """No weight is further from its value than half a step of its block (and the ends half a step more)."""
    matrix = weights(64, 10)
    blocks = matrix.reshape(2, BLOCK, 10)
    width = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    error = np.abs(nearest(matrix, bits).values() - matrix).reshape(2, BLOCK, 10)
    assert (error <= width[:, None] / steps * 1.001).all()
    assert np.median(error / (width[:, None] / steps)) < 0.3


def test_a_block_of_equal_weights_is_exact_enough() -> None:
    """A range of nothing divides nothing."""
    for value in (0.0, 0.5, -0.5):
        found = nearest(np.full((BLOCK, 2), value, np.float32), 4).values()
        np.testing.assert_allclose(found, value, atol=1e-6)


def test_weights_that_were_quantised_before_are_met_exactly() -> None:
    """Rounded a second time they would all be off by the same part of a step, block by block."""
    matrix = quantised_before(96, 16)
    blocks, shifts = shifted(matrix, 4)
    np.testing.assert_allclose(blocks.values() + np.repeat(shifts, BLOCK, axis=0), matrix, atol=1e-6)
    assert np.abs(nearest(matrix, 4).values() - matrix).max() > 1e-3
    inputs = 1 + weights(4, 96, 3).reshape(1, 4, 96)
    once = np.abs(product(matrix, inputs, 4) - inputs @ matrix).max()
    twice = np.abs(inputs @ nearest(matrix, 4).values() - inputs @ matrix).max()
    assert once < twice / 5


def test_codes_are_packed_low_half_first() -> None:
    """Two codes in a byte, a column's zero points from a byte of their own."""
    codes = np.arange(16, dtype=np.uint8).repeat(2).reshape(1, 1, BLOCK)
    blocks = Blocks(BLOCK, 4, codes, np.ones((1, 1), np.float32), np.array([[7]], np.uint8))
    assert blocks.packed()[0, 0, :3].tolist() == [0x00, 0x11, 0x22]
    three = Blocks(
        96,
        4,
        np.zeros((2, 3, BLOCK), np.uint8),
        np.ones((2, 3), np.float32),
        np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
    )
    assert three.packed_zeros().tolist() == [0x21, 0x03, 0x54, 0x06]


def test_quality_is_measured_on_the_texts_own_tokens() -> None:
    """Perplexity of a uniform guess is the vocabulary's size; agreement counts the most likely tokens."""
    uniform = np.zeros((3, 4), np.float32)
    sure = np.full((3, 4), -20, np.float32)
    sure[[0, 1, 2], [1, 2, 3]] = 20
    found = compare(lambda _: uniform, lambda _: sure, [[0, 1, 2]])
    assert found.tokens == 2
    assert found.reference_perplexity == pytest.approx(4)
    assert found.perplexity == pytest.approx(1)
    assert found.agreement == 0
    assert found.logprob_difference == pytest.approx(math.log(4))


def test_the_gate_looks_at_perplexity_and_agreement() -> None:
    """A limit is enough, and what is not a number never passes."""
    good = Quality(tokens=9, reference_perplexity=10, perplexity=10.2, agreement=0.95, logprob_difference=0.1)
    assert passes(good, "int4")
    assert not passes(good, "fp32")
    assert not passes(Quality(9, 10, 11, 0.95, 0.1), "int4")
    assert not passes(Quality(9, 10, 10.2, 0.85, 0.1), "int4")
    assert not passes(Quality(9, 10, math.nan, 0.95, 0.1), "int8")
    assert "perplexity 11.00 instead of 10.00 (+10.0%)" in Quality(9, 10, 11, 0.95, 0.1).text()


def write_gguf(path: Path, model: Any, architecture: str = "llama") -> None:
    """Store a Llama as llama.cpp does: its names, and rotated features in pairs."""
    from gguf import GGUFWriter

    config = model.config
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    inner = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "ab"])
    writer.add_token_types([3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = value.numpy()
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] != "layers":
            writer.add_tensor(f"{names[parts[0]]}.weight", array)
            continue
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(parts[2][10:11])
        if heads and parts[2].startswith("self_attn"):
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        writer.add_tensor(f"blk.{parts[1]}.{inner[parts[2]]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path: Path) -> None:
    """Every weight comes back under its name and in its order, and so do sizes and tokens."""
    from transformers import AutoModelForCausalLM

    write_tiny_llama(tmp_path / "hf")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "tiny.gguf", model)
    source = GgufLlama(tmp_path / "tiny.gguf")
    expected = {key: value.numpy() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    found = dict(source.weights())
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    config = source.config()
    for key in ("hidden_size", "num_key_value_heads", "intermediate_size", "tie_word_embeddings", "head_dim"):
        assert config[key] == getattr(model.config, key)
    assert config["rms_norm_eps"] == 1e-6
    assert source.tokens()[4] == "ab"
    assert source.merges() == [["a", "b"]]
    assert source.control_tokens() == [0, 1]
    assert source.token("eos") == "</s>"
    assert source.chat_template() == "{{ messages }}"


def test_another_architecture_in_a_gguf_file_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_tiny_llama(tmp_path / "hf")
    write_gguf(tmp_path / "tiny.gguf", AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), "mamba")
    with pytest.raises(ConversionError, match="architecture 'mamba'; only 'llama' is read"):
        GgufLlama(tmp_path / "tiny.gguf")


def test_a_graph_without_a_kv_cache_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])],
        "none",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", "sequence"])],
    )
    with pytest.raises(ConversionError, match="0 GroupQueryAttention layers"):
        adapt(helper.make_model(graph), head_size=16)


def refusal(source: Path, target: Path, *options: str) -> str:
    """What the command says; it must fail."""
    from headrace.server.cli import cli

    result = CliRunner().invoke(cli, ["convert", str(source), str(target), *options])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def folder(path: Path, architectures: Sequence[str]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": list(architectures)}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_what_cannot_be_converted_is_refused_at_once(tmp_path: Path) -> None:
    """Each message names the fault, and nothing is left behind."""
    bert = folder(tmp_path / "bert", ["BertModel"])
    target = tmp_path / "out"
    assert "architecture BertModel of 'bert' is no causal language model" in refusal(bert, target)
    assert "no precision 'int2'; expected one of fp32, int8" in refusal(bert, target, "--precision", "int2")
    assert "it has no config.json, tokenizer.json" in refusal(tmp_path, target)
    assert "exists already" in refusal(bert, bert)
    (bert / "model.safetensors").unlink()
    assert "has no weights" in refusal(bert, target)
    (bert / "model.safetensors").write_bytes(b"")
    (bert / "config.json").write_text("[]")
    assert "config.json" in refusal(bert, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert"]


@pytest.mark.slow
def test_a_folder_becomes_a_model_of_the_repository(tmp_path: Path) -> None:
    """8 bits of a model are close to it, and what was measured is kept beside the weights."""
    write_tiny_llama(tmp_path / "hf")
    said: list[str] = []
    target = tmp_path / "repository" / "tiny"
    checks = causal.convert(tmp_path / "hf", target, precision="int8", force=False, progress=said.append)
    assert checks["precision"] == "int8"
    assert float(checks["greedy_agreement"]) >= 0.9
    assert json.loads((target / "1" / "quality.json").read_text()) == checks
    assert 'key: "task" value: { string_value: "generate" }' in (target / "config.pbtxt").read_text()
    assert 'name: "tiny"' in (target / "config.pbtxt").read_text()
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (target / "1").iterdir()
    }
    assert {"comparing to transformers", "quantizing", "comparing to float32"} <= set(said)
    graph = onnx.load(target / "1" / "model.onnx").graph
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == 11
    assert not [node for node in graph.node if node.op_type in ("MatMul", "FusedMatMul", "Transpose")]
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_four_bits_that_change_a_model_are_refused_unless_forced(tmp_path: Path) -> None:
    """A random model does not survive 4 bits; the message has the numbers."""
    write_tiny_llama(tmp_path / "hf")
    target = tmp_path / "tiny"
    text = refusal(tmp_path / "hf", target, "--precision", "int4")
    assert "int4 changes this model too much: perplexity" in text
    assert "or --force to write it all the same" in text
    assert not target.exists()
    checks = causal.convert(tmp_path / "hf", target, precision="int4", force=True, progress=lambda _: None)
    assert (target / "1" / "model.onnx").is_file()
    assert float(checks["greedy_agreement"]) < 0.9


@pytest.mark.slow
def test_an_architecture_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    """The exporter's own complaint, without its stack."""
    write_tiny_llama(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    with pytest.raises(ConversionError, match="architecture OddForCausalLM cannot be exported to ONNX"):
        causal.convert(
            tmp_path / "hf", tmp_path / "x", precision="fp32", force=False, progress=lambda _: None
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {"tie_word_embeddings": False}),
        ("Mistral", {"sliding_window": 16}),
        ("Gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
    ],
)
def test_other_architectures_compute_what_transformers_does(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """Untied embeddings, normalised queries, windows, soft caps behind the last layer."""
    write_tiny_llama(tmp_path / "hf", kind, **changes)
    checks = causal.convert(
        tmp_path / "hf", tmp_path / "tiny", precision="fp32", force=False, progress=lambda _: None
    )
    assert float(checks["greedy_agreement"]) == 1
    assert float(checks["mean_logprob_difference"]) < 1e-4
