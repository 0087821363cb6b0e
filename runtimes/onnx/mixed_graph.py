"""Rewrites a decoder graph so that one run decodes rows and computes prompts.

The operator for attention takes one token of each row, or many of rows that begin, or many of one row behind
a past, but never some of each. Everything else in a layer does not care which sequence a token is of. So all
tokens lie in one batch of single tokens, [tokens, 1, width], and only around the attention it is parted: the
decodes in front go to one such operator, the prompts behind them to another, each with the KV cache of its
own rows. A run then reads the weights once where two runs read them twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.runtimes.graph_edits import replace_nodes

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, ValueInfoProto

PROMPTS: Final = "prompts."
"""In front of the names of what the prompts have for themselves: lengths, total length, past and present."""
PARTS: Final = "parts"
"""int64 [2]: tokens of the decodes, and of the prompts, padding included."""
APART: Final = "prompts_shape"
"""int64 [3]: rows of the prompts, tokens of each, -1."""
FLAT: Final = "prompts_flat_shape"
"""int64 [3]: tokens of the prompts, 1, -1."""

_ATTENTION: Final = "GroupQueryAttention"
_TOKENS_AT: Final = (0, 1, 2)  # queries (or all three in one), keys, values
_PAST_AT: Final = (3, 4)
_LENGTHS_AT: Final = 5
_TOTAL_AT: Final = 6
_BY_TOKEN_AT: Final = (9, 10)  # positions and a bias, which would have to be parted too
_PRESENT_AT: Final = (1, 2)


class NotMixedError(Exception):
    """The graph has no such form; the text says why."""


def mix(graph: GraphProto) -> None:
    """Change ``graph``, made by ``headrace convert``, in place.

    ``input_ids`` and ``position_ids`` become [tokens, 1], decodes in front; ``logit_positions`` count these.
    ``seqlens_k``, ``total_sequence_length``, past and present are of the decodes, and again, behind
    ``prompts.``, of the prompts. There are always some of both.

    Raises:
        NotMixedError: the attention takes something by token that is not known here, or something else
            depends on how long rows are.
    """
    layers = [node for node in graph.node if node.op_type == _ATTENTION]
    lengths = {node.input[at] for node in layers for at in (_LENGTHS_AT, _TOTAL_AT)}
    _check(graph, layers, lengths)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _parted(node) if node.op_type == _ATTENTION else [node]
    replace_nodes(graph, nodes)
    doubled = lengths.union(*({node.input[at] for at in _PAST_AT} for node in layers))
    graph.input.extend([_of_prompts(value) for value in graph.input if value.name in doubled])
    present = {node.output[at] for node in layers for at in _PRESENT_AT}
    graph.output.extend([_of_prompts(value) for value in graph.output if value.name in present])
    _add_shapes(graph)
    del graph.value_info[:]


def _check(graph: GraphProto, layers: list[NodeProto], lengths: set[str]) -> None:
    if not layers:
        raise NotMixedError(f"the graph has no {_ATTENTION}")
    for node in layers:
        if any(node.input[at] for at in _BY_TOKEN_AT if at < len(node.input)):
            raise NotMixedError(f"the attention '{node.name}' takes positions or a bias")
        if len([name for name in node.output if name]) != 1 + len(_PRESENT_AT):
            raise NotMixedError(f"the attention '{node.name}' has outputs that are not known")
    for node in graph.node:
        if node.op_type != _ATTENTION and lengths.intersection(node.input):
            raise NotMixedError(f"the operator '{node.name}' ({node.op_type}) takes the rows' lengths")


def _parted(node: NodeProto) -> list[NodeProto]:
    """Return what stands for one operator of attention."""
    from onnx import NodeProto, helper

    name = node.name
    nodes: list[NodeProto] = []
    decodes, prompts = NodeProto(), NodeProto()
    decodes.CopyFrom(node)
    prompts.CopyFrom(node)
    decodes.name, prompts.name = f"{name}/decodes", f"{name}/prompts"
    for at in _TOKENS_AT:
        if not node.input[at]:
            continue
        front, behind, apart = (f"{name}/{part}_{at}" for part in ("decodes", "flat", "prompts"))
        nodes.append(
            helper.make_node("Split", [node.input[at], PARTS], [front, behind], f"{name}/part_{at}", axis=0)
        )
        nodes.append(helper.make_node("Reshape", [behind, APART], [apart], f"{name}/apart_{at}"))
        decodes.input[at], prompts.input[at] = front, apart
    for at in (*_PAST_AT, _LENGTHS_AT, _TOTAL_AT):
        prompts.input[at] = PROMPTS + node.input[at]
    for at in _PRESENT_AT:
        prompts.output[at] = PROMPTS + node.output[at]
    one, two, flat = f"{name}/decoded", f"{name}/computed", f"{name}/computed_flat"
    decodes.output[0], prompts.output[0] = one, two
    return [
        *nodes,
        decodes,
        prompts,
        helper.make_node("Reshape", [two, FLAT], [flat], f"{name}/flat"),
        helper.make_node("Concat", [one, flat], [node.output[0]], f"{name}/join", axis=0),
    ]


def _of_prompts(value: ValueInfoProto) -> ValueInfoProto:
    """Return an input or output like ``value`` for the rows of prompts, whose number is another one."""
    from onnx import ValueInfoProto

    made = ValueInfoProto()
    made.CopyFrom(value)
    made.name = PROMPTS + value.name
    first = made.type.tensor_type.shape.dim[0]
    if first.dim_param:
        first.dim_param = PROMPTS + first.dim_param
    return made


def _add_shapes(graph: GraphProto) -> None:
    from onnx import TensorProto, helper

    for name, size in ((PARTS, 2), (APART, 3), (FLAT, 3)):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [size]))
