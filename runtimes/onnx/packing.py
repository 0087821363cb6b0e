"""Rewrites a text encoder with fused attention so that padding costs nothing outside of attention.

Everything in an encoder but attention treats each token on its own. So the tokens of a padded batch are taken
out of their rows before the first layer, [rows, width, dim] → [tokens, dim]. Queries, keys and values are
laid out in rows again for each attention only, and what it gives is packed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from headrace.runtimes.graph_edits import replace_nodes

MASK: Final = "attention_mask"
"""The input that says which positions are tokens: integers [rows, width], 1 or 0."""

_MICROSOFT: Final = "com.microsoft"
_WHOLE: Final = "Attention"
_SEPARATE: Final = "MultiHeadAttention"
_KEPT: Final = frozenset({"num_heads", "scale", "mask_filter_value", "unidirectional"})
_PAST: Final = MappingProxyType({_WHOLE: (4, 6), _SEPARATE: (6, 7)})
"""Inputs that encoders do not have."""
_MASK_AT: Final = MappingProxyType({_WHOLE: (3, 5), _SEPARATE: (4, 5)})
"""Inputs with the mask and with what is added to the scores."""
_TOKENWISE: Final = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "LayerNormalization", "Identity"),
        *("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "Erf", "Tanh", "Relu", "Sigmoid", "Sqrt"),
    }
)
"""Operators that treat each token on its own when all else that they take is the same for every token."""

PREFIX: Final = "packing/"
TOKENS: Final = f"{PREFIX}tokens"
"""Where the tokens are among all positions, int64 [tokens]."""
PLACES: Final = f"{PREFIX}places"
"""Which token is at each position, int64 [rows, width]; at padding it is any."""
WHOLE_MASK: Final = f"{PREFIX}mask/integers"
"""The mask, int64 [rows, width]."""


class NotPackedError(Exception):
    """The graph cannot be rewritten; the text says why."""


def pack(model: ModelProto) -> None:
    """Rewrite ``model`` in place; its inputs, its outputs and their shapes stay.

    Values of an output at padding change.

    Raises:
        NotPackedError: there is no attention, or between two of them something that looks at several tokens.
    """
    graph = model.graph
    if all(value.name != MASK for value in graph.input):
        msg = f"the graph has no input {MASK}"
        raise NotPackedError(msg)
    replace_nodes(graph, list(_Packing(graph).nodes()))
    # the shapes of values in between are others now
    del graph.value_info[:]


class _Packing:
    """Goes through the nodes in order. A packed value ``x`` is called ``packing/x``, its rows ``x``."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._ranks = {name: len(tensor.dims) for name, tensor in self._weights.items()}
        for node in graph.node:
            if node.op_type == "Constant":
                value = [attribute.t for attribute in node.attribute if attribute.name == "value"]
                self._ranks[node.output[0]] = len(value[0].dims) if value else 1
        self._packed: set[str] = set()
        self._in_rows: set[str] = set()

    def nodes(self) -> Iterator[NodeProto]:
        """Yield the nodes of the packed graph."""
        entry = self._entry()
        for node in self._graph.node:
            if node.op_type in _MASK_AT:
                yield from self._attention(node)
            elif self._tokenwise(node):
                yield self._on_tokens(node)
            else:
                for name in node.input:
                    yield from self._rows(name)
                yield node
            if entry in node.output:
                yield from self._places()
                yield from self._take(entry, entry)
                self._in_rows.add(entry)
        for value in self._graph.output:
            yield from self._rows(value.name)

    def _entry(self) -> str:
        """Return the hidden states that the first attention reads, before any linear layer of its own."""
        producers = {name: node for node in self._graph.node for name in node.output}
        first = next((node for node in self._graph.node if node.op_type in _MASK_AT), None)
        if first is None:
            msg = "the graph has no operators for attention"
            raise NotPackedError(msg)
        found = set()
        for name in first.input[: 1 if first.op_type == _WHOLE else 3]:
            node = producers.get(name)
            while node is not None and node.op_type in {"MatMul", "Add"}:
                grown = [each for each in node.input if each not in self._ranks]
                if len(grown) != 1:
                    break
                name = grown[0]  # noqa: PLW2901 - the walk begins at the input
                node = producers.get(name)
            found.add(name)
        if len(found) != 1 or not found <= producers.keys():
            msg = f"the first attention reads from {len(found)} places"
            raise NotPackedError(msg)
        return found.pop()

    def _tokenwise(self, node: NodeProto) -> bool:
        if node.op_type not in _TOKENWISE or self._packed.isdisjoint(node.input):
            return False
        if node.op_type == "MatMul":
            return node.input[0] in self._packed and self._ranks.get(node.input[1]) == 2
        others = [name for name in node.input if name and name not in self._packed]
        return all(self._ranks.get(name, 2) <= 1 for name in others)

    def _on_tokens(self, node: NodeProto) -> NodeProto:
        made = NodeProto()
        made.CopyFrom(node)
        for at, name in enumerate(node.input):
            made.input[at] = PREFIX + name if name in self._packed else name
        self._packed.update(node.output)
        for at, name in enumerate(node.output):
            made.output[at] = PREFIX + name
        for attribute in made.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "axis":
                attribute.i = -1
        return made

    def _attention(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield the same attention with its inputs in rows and its result packed."""
        inputs = [*node.input, *[""] * 8]
        refused = sorted({attribute.name for attribute in node.attribute} - _KEPT)
        if refused or any(inputs[at] for at in _PAST[node.op_type]):
            msg = f"attention has {', '.join(refused) or 'a past'}"
            raise NotPackedError(msg)
        whole = node.op_type == _WHOLE
        missing = [name for name in inputs[: 1 if whole else 3] if name not in self._packed]
        if missing:
            msg = f"attention reads {missing[0]}, which does not come from single tokens"
            raise NotPackedError(msg)
        name = node.output[0]
        bias = ""
        if whole:
            sources = [f"{PREFIX}{name}/{part}" for part in "qkv"]
            yield from self._linear(PREFIX + inputs[0], inputs[1], inputs[2], sources)
        else:
            sources, bias = [PREFIX + each for each in inputs[:3]], inputs[3]
        rows = [f"{PREFIX}{name}/{part}/rows" for part in "qkv"]
        for source, target in zip(sources, rows, strict=True):
            yield helper.make_node("Gather", [source, PLACES], [target], axis=0)
        more = [inputs[at] for at in _MASK_AT[node.op_type]]
        attention = helper.make_node(_SEPARATE, [*rows, bias, *more], [f"{PREFIX}{name}/rows"])
        attention.domain = _MICROSOFT
        attention.attribute.extend(node.attribute)
        yield attention
        yield from self._take(f"{PREFIX}{name}/rows", name)

    def _linear(self, source: str, weight: str, bias: str, targets: list[str]) -> Iterator[NodeProto]:
        """Yield the layers that make queries, keys and values, whose weights lie side by side."""
        if weight not in self._weights or (bias and bias not in self._weights):
            msg = "attention has weights that are no constants"
            raise NotPackedError(msg)
        parts = np.split(numpy_helper.to_array(self._weights[weight]), 3, axis=1)
        shifts = np.split(numpy_helper.to_array(self._weights[bias]), 3) if bias else [0.0] * 3
        for target, part, shift in zip(targets, parts, shifts, strict=True):
            self._constant(f"{target}/weight", np.ascontiguousarray(part))
            self._constant(f"{target}/bias", np.asarray(shift, part.dtype))
            yield helper.make_node("MatMul", [source, f"{target}/weight"], [f"{target}/product"])
            yield helper.make_node("Add", [f"{target}/product", f"{target}/bias"], [target])

    def _places(self) -> Iterator[NodeProto]:
        """Yield what finds the tokens in the mask."""
        mask, seen = f"{PREFIX}mask", f"{PREFIX}seen"
        self._constant(f"{PREFIX}all", np.array([-1], np.int64))
        self._constant(f"{PREFIX}zero", np.array(0, np.int64))
        self._constant(f"{PREFIX}one", np.array(1, np.int64))
        yield helper.make_node("Cast", [MASK], [WHOLE_MASK], to=TensorProto.INT64)
        for kind, inputs, output in (
            ("Reshape", [WHOLE_MASK, f"{PREFIX}all"], mask),
            ("NonZero", [mask], f"{TOKENS}/found"),
            ("Reshape", [f"{TOKENS}/found", f"{PREFIX}all"], TOKENS),
            ("CumSum", [mask, f"{PREFIX}zero"], f"{seen}/count"),
            ("Sub", [f"{seen}/count", f"{PREFIX}one"], f"{seen}/last"),
            ("Max", [f"{seen}/last", f"{PREFIX}zero"], seen),
            ("Shape", [MASK], f"{mask}/shape"),
            ("Reshape", [seen, f"{mask}/shape"], PLACES),
        ):
            yield helper.make_node(kind, inputs, [output])

    def _take(self, rows: str, name: str) -> Iterator[NodeProto]:
        """Yield what packs ``rows``; the result is the packed form of ``name``."""
        flat = f"{PREFIX}{name}/flat"
        yield helper.make_node("Flatten", [rows], [flat], axis=2)
        yield helper.make_node("Gather", [flat, TOKENS], [PREFIX + name], axis=0)
        self._packed.add(name)

    def _rows(self, name: str) -> Iterator[NodeProto]:
        """Yield what lays a packed value out in rows, unless that was done."""
        if name in self._packed and name not in self._in_rows:
            self._in_rows.add(name)
            yield helper.make_node("Gather", [PREFIX + name, PLACES], [name], axis=0)

    def _constant(self, name: str, values: ArrayLike) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
