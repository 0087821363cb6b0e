"""Rewrites a packed text encoder (``packing``) so that its layers and attention are our own operators.

A linear layer does what follows it along: bias, activation, residual. Queries, keys and values come from one
layer, and attention reads them where they lie. Nothing is laid out in rows, so padding costs nothing at all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from headrace.runtimes.graph_edits import replace_nodes
from headrace.runtimes.onnx.operators import DOMAIN, GELU, NO_ACTIVATION, WIDTH, panels
from headrace.runtimes.onnx.packing import PLACES, TOKENS, WHOLE_MASK

_ATTENTION: Final = "MultiHeadAttention"
_BIAS_AT: Final = 3
_MASK_AT: Final = 4
_ADDED_AT: Final = 5
"""Inputs of ONNX Runtime's attention: the bias of the layers before it, the mask, what is added to scores."""


class NotRewrittenError(Exception):
    """There is attention that our operator does not know; the text says why."""


class _Layer(NamedTuple):
    """``source`` [tokens, terms] times ``weights`` [terms, columns], plus ``bias`` [columns]."""

    source: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


def use_operators(model: ModelProto) -> int:
    """Rewrite ``model``, a packed encoder, in place; its inputs and outputs stay.

    Returns:
        How many nodes are our operators now.

    Raises:
        NotRewrittenError: attention is not that of all tokens to all others of their text, or its heads have
            a size that is no multiple of 32.
    """
    rewriting = _Rewriting(model.graph)
    count = rewriting.attention() + rewriting.linear() + rewriting.norms()
    replace_nodes(model.graph, rewriting.nodes())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return count


class _Rewriting:
    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._outputs = {value.name for value in graph.output}
        self._made: dict[int, list[NodeProto]] = {}
        """What stands where a node was, by its identity."""

    def nodes(self) -> list[NodeProto]:
        """Return the nodes of the rewritten graph: those that its outputs depend on."""
        changed = [made for node in self._graph.node for made in self._made.get(id(node), [node])]
        needed = set(self._outputs)
        kept = []
        for node in reversed(changed):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        return kept[::-1]

    def attention(self) -> int:
        """Replace attention and the layers before it; returns how many nodes of ours there are now."""
        found = [node for node in self._graph.node if node.op_type == _ATTENTION]
        for node in found:
            self._replace_attention(node)
        return 2 * len(found)

    def _replace_attention(self, node: NodeProto) -> None:
        inputs = [*node.input, *[""] * 8]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        flat = self._sole_reader(node.output[0])
        packed = None if flat is None else self._sole_reader(flat.output[0])
        rows = [self._makers.get(name) for name in inputs[:3]]
        if (
            packed is None
            or packed.input[1] != TOKENS
            or any(row is None or row.input[1] != PLACES for row in rows)
        ):
            raise NotRewrittenError("attention is not between tokens that are packed")
        if not inputs[_MASK_AT] or inputs[_ADDED_AT] or attributes.get("unidirectional"):
            raise NotRewrittenError("attention is not that of all tokens to all others")
        layers = [self._layer(row.input[0]) for row in rows if row is not None]
        if (
            len({layer.source for layer in layers}) != 1
            or len({layer.weights.shape for layer in layers}) != 1
        ):
            raise NotRewrittenError("queries, keys and values differ in what they come from, or in size")
        heads, width = attributes["num_heads"], layers[0].weights.shape[1]
        if width % (heads * WIDTH):
            raise NotRewrittenError(f"heads have {width / heads:g} columns, which is no multiple of {WIDTH}")
        weights = np.concatenate([layer.weights for layer in layers], axis=1)
        bias = np.concatenate([layer.bias for layer in layers])
        if inputs[_BIAS_AT]:
            bias += self._values(inputs[_BIAS_AT])
        name = packed.output[0]
        scale = attributes.get("scale") or (width // heads) ** -0.5
        made = helper.make_node(
            "Attention", [f"{name}/qkv", WHOLE_MASK], [name], heads=heads, scale=float(scale)
        )
        made.domain = DOMAIN
        self._made[id(packed)] = [self._linear_node(f"{name}/qkv", layers[0].source, weights, bias), made]

    def _layer(self, name: str) -> _Layer:
        """Return the layer that makes ``name``.

        Raises:
            NotRewrittenError: none does.
        """
        node = self._makers.get(name)
        shift = ""
        if node is not None and node.op_type == "Add":
            shift = next((each for each in node.input if each in self._weights), "")
            node = self._makers.get(next((each for each in node.input if each != shift), ""))
        if node is None or node.op_type != "MatMul" or not self._suits(node):
            raise NotRewrittenError("queries, keys and values do not come from linear layers")
        weights = self._values(node.input[1])
        bias = np.zeros(weights.shape[1], np.float32)
        return _Layer(node.input[0], weights, bias + self._values(shift) if shift else bias)

    def linear(self) -> int:
        """Replace linear layers and what follows them; returns how many."""
        # those before attention have been replaced
        needed = {id(node) for node in self.nodes()}
        found = [node for node in self._graph.node if id(node) in needed and self._suits(node)]
        for node in found:
            self._replace_linear(node)
        return len(found)

    def _replace_linear(self, node: NodeProto) -> None:
        weights = self._values(node.input[1])
        last, bias, residual, activation = node, "", "", NO_ACTIVATION
        while not residual and (reader := self._sole_reader(last.output[0])) is not None:
            other = next((name for name in reader.input if name != last.output[0]), "")
            constant = other in self._weights and list(self._weights[other].dims) == [weights.shape[1]]
            if id(reader) in self._made or (activation and reader.op_type != "Add"):
                break
            if constant and not bias and not activation and reader.op_type in ("Add", "BiasGelu"):
                bias = other
                activation = GELU if reader.op_type == "BiasGelu" else NO_ACTIVATION
            elif reader.op_type == "Gelu":
                activation = GELU
            elif reader.op_type == "Add" and other in self._makers:
                residual = other
            else:
                break
            self._made[id(last)] = []
            last = reader
        shift = self._values(bias) if bias else None
        made = self._linear_node(last.output[0], node.input[0], weights, shift, residual, activation)
        self._made[id(last)] = [made]

    def norms(self) -> int:
        """Replace layer norms; returns how many."""
        found = [node for node in self._graph.node if self._is_norm(node)]
        for node in found:
            epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
            made = helper.make_node("LayerNorm", node.input, node.output[:1], domain=DOMAIN, epsilon=epsilon)
            self._made[id(node)] = [made]
        return len(found)

    def _is_norm(self, node: NodeProto) -> bool:
        """Whether a node is a layer norm, of the last dimension, that our operator can be."""
        if node.op_type != "LayerNormalization" or len(node.input) < 3 or any(node.output[1:]):
            return False
        scale, bias = (self._weights.get(name) for name in node.input[1:3])
        if scale is None or bias is None or scale.data_type != TensorProto.FLOAT or len(scale.dims) != 1:
            return False
        axis = next((each.i for each in node.attribute if each.name == "axis"), -1)
        return axis == -1 and scale.dims == bias.dims and scale.dims[0] % WIDTH == 0

    def _suits(self, node: NodeProto) -> bool:
        """Whether a node is a linear layer that our operator can be."""
        tensor = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            return False
        return tensor.dims[1] > 0 and tensor.dims[1] % WIDTH == 0

    def _sole_reader(self, name: str) -> NodeProto | None:
        readers = self._readers[name]
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _values(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self._weights[name])

    def _linear_node(
        self,
        name: str,
        source: str,
        weights: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        residual: str = "",
        activation: int = NO_ACTIVATION,
    ) -> NodeProto:
        inputs = [source, self._constant(f"{name}/panels", panels(weights)), "", residual]
        if bias is not None:
            inputs[2] = self._constant(f"{name}/bias", bias)
        while not inputs[-1]:
            inputs.pop()
        return helper.make_node("Linear", inputs, [name], domain=DOMAIN, activation=activation)

    def _constant(self, name: str, values: NDArray[np.float32]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name
