"""Quantises the linear layers of a decoder graph to 8 or 4 bits; activations and attention stay float32.

4-bit codes of weights that were quantised before (as those of GGUF files are) would be rounded twice. Such
matrices are found by trying, and keep their values but for a thirtieth of a step: besides the codes each
block has a shift, which works on the sum of the block's inputs. These sums go into the product as further
inputs, and the shifts as further weights, 4 bits too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from headrace.runtimes.convert.causal_blocks import BLOCK, Blocks, Floats, nearest, shifted
from headrace.runtimes.convert.causal_graph import HIDDEN
from headrace.runtimes.graph_edits import replace_nodes

ACCURACY: Final = 4
"""``accuracy_level`` of MatMulNBits: products in 8-bit integers, the fastest on CPUs."""
HEAD_BITS: Final = 8
"""The last layer decides between 50,000 tokens: 4 bits cost it more than they save."""
_EXACT: Final = 0.1
"""A matrix was quantised before when shifts leave less than this share of the error of rounding."""


def quantize(model: onnx.ModelProto, bits: int, *, say: Callable[[str], None]) -> onnx.ModelProto:
    """Change ``model``, whose weights are in memory, in place and return it.

    The products with constant matrices become 4- or 8-bit ones; the last keeps 8 bits.
    """
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    count = sum(_is_layer(node, constants) for node in graph.node)
    sums: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    done = 0
    for node in graph.node:
        if not _is_layer(node, constants):
            nodes.append(node)
            continue
        done += 1
        if done % 10 == 1:
            say(f"quantizing: layer {done} of {count}")
        weights = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        if node.op_type == "FusedMatMul":
            weights = weights.T
        nodes += _layer(graph, node, weights, HEAD_BITS if node.input[0] == HIDDEN else bits, sums)
    replace_nodes(graph, nodes)
    return model


def _is_layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether it multiplies by a constant matrix; the fused form is the one that the embedding shares."""
    return node.op_type in ("MatMul", "FusedMatMul") and node.input[1] in constants


def _layer(
    graph: onnx.GraphProto, node: onnx.NodeProto, weights: Floats, bits: int, sums: dict[str, str]
) -> list[onnx.NodeProto]:
    """The nodes that stand for ``node``; ``sums`` knows inputs that carry their blocks' sums already."""
    blocks = nearest(weights, bits)
    source, before = node.input[0], []
    if bits == 4 and len(weights) % BLOCK == 0:
        exact, shifts = shifted(weights, bits)
        left = exact.values() + np.repeat(shifts, BLOCK, axis=0) - weights
        if np.square(left).sum() < _EXACT**2 * np.square(blocks.values() - weights).sum():
            blocks = _appended(exact, nearest(shifts, bits))
            if source not in sums:
                before = _with_sums(graph, source, len(weights))
                sums[source] = before[-1].output[0]
            source = sums[source]
    name = node.input[1]
    parts: dict[str, npt.NDArray[Any]] = {
        f"{name}_codes": blocks.packed(),
        f"{name}_scales": blocks.scales.reshape(-1),
        f"{name}_zeros": blocks.packed_zeros(),
    }
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in parts.items())
    product = helper.make_node(
        "MatMulNBits",
        [source, *parts],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=blocks.rows,
        N=weights.shape[1],
        bits=bits,
        block_size=BLOCK,
        accuracy_level=ACCURACY,
    )
    return [*before, product]


def _appended(first: Blocks, second: Blocks) -> Blocks:
    """Rows of ``second`` below those of ``first``, which fill whole blocks."""
    return Blocks(
        first.rows + second.rows,
        first.bits,
        np.concatenate([first.codes, second.codes], axis=1),
        np.concatenate([first.scales, second.scales], axis=1),
        np.concatenate([first.zeros, second.zeros], axis=1),
    )


def _with_sums(graph: onnx.GraphProto, source: str, width: int) -> list[onnx.NodeProto]:
    """[batch, sequence, width] → [batch, sequence, width + blocks]: the inputs, then each block's sum."""
    shape, axis = f"block_sums/shape_{width}", "block_sums/axis"
    known = {value.name for value in graph.initializer}
    for name, value in ((shape, [0, 0, width // BLOCK, BLOCK]), (axis, [3])):
        if name not in known:
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    blocks, sums, both = f"{source}/blocks", f"{source}/sums", f"{source}/both"
    return [
        helper.make_node("Reshape", [source, shape], [blocks], name=blocks),
        helper.make_node("ReduceSum", [blocks, axis], [sums], name=sums, keepdims=0),
        helper.make_node("Concat", [source, sums], [both], name=both, axis=2),
    ]
