"""The decoder for GPUs, tried on the CPU: blocks, tables, copies and batches that are filled up.

The Triton kernel is tried too where Triton is installed, by its interpreter where there is no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_decoders import BLOCK, SIZES, agrees, build, specification, table

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import Chunk
from headrace.runtimes.torch.generation import auto, cuda_graphs
from headrace.runtimes.torch.generation.architecture import architecture, read_config
from headrace.runtimes.torch.generation.llama import Llama
from headrace.runtimes.torch.generation.network import Form, Network
from headrace.runtimes.torch.generation.paged_attention import Decode, PagedAttention, gather
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.generation.paged_decoder import PagedDecoder
from headrace.runtimes.torch.generation.weights import Checkpoint

CPU = torch.device("cpu")


def kernels() -> dict[str, Decode]:
    found: dict[str, Decode] = {"gather": gather}
    if find_spec("triton") is not None:
        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"
        from headrace.runtimes.torch.generation.cuda_kernel import decode

        found["triton"] = decode
    return found


KERNELS = kernels()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network(folder: Path) -> Network:
    sizes = architecture(read_config(folder))
    if sizes is None:
        spec = specification()
        instance = InstanceSpec("tiny", "torch", str(folder), options={"dtype": "float32"}, generation=spec)
        return auto.load(folder, instance, spec, CPU, lambda n, s: PagedDecoder(n, s, CPU, gather))
    with Checkpoint(folder) as checkpoint, torch.inference_mode():
        return Llama(checkpoint, sizes, 96, torch.float32, CPU)


VARIANTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=3.0
    ),
    "gpt-oss, with sinks": lambda: transformers.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=9
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    build(tmp_path, VARIANTS[name]())
    agrees(tmp_path, PagedDecoder(network(tmp_path), specification(), CPU, gather))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("variation", [{}, {"window": 21}, {"softcap": 2.0}, {"sinks": True}])
@pytest.mark.parametrize(("heads", "group", "width", "value_width"), [(2, 3, 24, 24), (1, 1, 64, 40)])
def test_one_token_of_each_sequence_attends_to_its_blocks(
    kernel: str, variation: dict[str, Any], heads: int, group: int, width: int, value_width: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = (1, 5, 64, 131, 700)
    blocks, most = 300, -(-max(lengths) // BLOCK)
    keys = torch.randn(blocks, BLOCK, heads, width, generator=generator)
    values = torch.randn(blocks, BLOCK, heads, value_width, generator=generator)
    query = torch.randn(len(lengths), heads * group, width, generator=generator)
    tables = torch.stack([torch.randperm(blocks, generator=generator)[:most] for _ in lengths])
    sinks = torch.randn(heads * group, generator=generator) if variation.pop("sinks", False) else None
    form = Form(scale=0.3, sinks=sinks, **variation)
    found = _called(KERNELS[kernel], query, keys, values, tables, torch.tensor(lengths), form)
    for row, length in enumerate(lengths):
        first = max(0, length - form.window) if form.window else 0
        key = keys[tables[row]].flatten(0, 1)[first:length].repeat_interleave(group, 1)
        value = values[tables[row]].flatten(0, 1)[first:length].repeat_interleave(group, 1)
        scores = torch.einsum("hd,thd->ht", query[row], key) * 0.3
        if form.softcap:
            scores = torch.tanh(scores / form.softcap) * form.softcap
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None]], 1)
        shares = torch.softmax(scores, 1)[:, : length - first]
        expected = torch.einsum("ht,thd->hd", shares, value)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def _called(decode: Decode, *arguments: Any) -> torch.Tensor:
    device = CPU if decode is gather else DEVICE
    *tensors, tables, ends, form = arguments
    moved = [tensor.to(device) for tensor in (*tensors, tables.int(), ends.int())]
    if form.sinks is not None:
        form = Form(form.scale, form.window, form.softcap, form.sinks.to(device))
    return decode(moved[0], moved[1], moved[2], moved[3], moved[4], form).cpu()


def test_batches_are_filled_up_to_the_next_size(tmp_path: Path) -> None:
    assert list(cuda_graphs.sizes(1)) == [1]
    assert list(cuda_graphs.sizes(6)) == [1, 2, 4, 6]
    assert list(cuda_graphs.sizes(130)) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 130]
    build(tmp_path, VARIANTS["llama"]())
    net, spec = network(tmp_path), specification()
    plain = PagedDecoder(net, spec, CPU, gather)
    with torch.inference_mode():
        cache = PagedCache(net.shapes, spec, net.dtype, CPU)
        inputs = cuda_graphs.inputs(4, 24, cache, CPU)
        attention = PagedAttention(cache, inputs.places, inputs.tables, inputs.ends, (), gather)
        for start in range(6):
            chunks = [Chunk(n, [5 * n + start], start, table(n), 1, start == 0) for n in (2, 0, 1)]
            cuda_graphs.fill(inputs, chunks, 4, cache)
            logits = net(inputs.tokens, inputs.positions, torch.arange(4), attention)
            np.testing.assert_allclose(logits[:3].numpy(), plain.step(chunks), rtol=1e-4, atol=1e-4)
        used = {block for n in range(3) for block in table(n)[:2]}
        others = [block for block in range(cache.spare) if block not in used]
        assert not any(keys[others].any() for keys in cache.keys)
