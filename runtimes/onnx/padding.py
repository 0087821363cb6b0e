"""Lets convolutions pad for themselves, where a graph does it in a node of its own.

Graphs that come from TensorFlow pad one side more than the other, in nodes before convolutions. ONNX
Runtime lays images out in blocks of channels for convolutions, not for those nodes: before each the image is
laid out as it was, and in blocks again behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from headrace.runtimes.graph_edits import keep, replace_nodes

PADDING: Final = "Pad"
"""The nodes that pad."""

_FIRST_SPATIAL: Final = 2
"""Dimensions before it are rows and channels."""


def fold_padding(graph: GraphProto) -> int:
    """Take away nodes that pad with zeros for convolutions only; these do it from then on.

    Returns:
        How many were taken away.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
    folded = [node for node in graph.node if node.op_type == PADDING and _fold(graph, node, constants)]
    taken = {name for node in folded for name in node.output}
    replace_nodes(graph, [node for node in graph.node if taken.isdisjoint(node.output)])
    return len(folded)


def _fold(graph: GraphProto, node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Have the readers of ``node`` pad instead of it; False, and nothing is changed, if one cannot."""
    name = node.output[0]
    readers = [reader for reader in graph.node if name in reader.input]
    sides = _sides(node, constants)
    if sides is None or not readers or any(value.name == name for value in graph.output):
        return False
    if not all(_pads_itself(reader, name, len(sides)) for reader in readers):
        return False
    for reader in readers:
        own = _attributes(reader).get("pads", [0] * len(sides))
        keep(reader.attribute, [each for each in reader.attribute if each.name not in ("pads", "auto_pad")])
        total = [one + other for one, other in zip(own, sides, strict=True)]
        reader.attribute.append(helper.make_attribute("pads", total))
        reader.input[0] = node.input[0]
    return True


def _sides(node: NodeProto, constants: dict[str, TensorProto]) -> list[int] | None:
    """Return how much is padded before each spatial dimension, then behind each; None if it is not zeros."""
    attributes = _attributes(node)
    inputs = [*node.input, *[""] * 4]
    if attributes.get("mode", b"constant") != b"constant" or inputs[3]:
        return None
    pads: Any = attributes.get("pads")
    if inputs[1]:
        pads = _values(inputs[1], constants)
    filled = _values(inputs[2], constants) if inputs[2] else np.array(attributes.get("value", 0.0))
    if pads is None or filled is None or np.any(filled):
        return None
    whole = np.asarray(pads).reshape(2, -1)
    if np.any(whole < 0) or np.any(whole[:, :_FIRST_SPATIAL]):
        return None
    return [int(value) for value in whole[:, _FIRST_SPATIAL:].ravel()]


def _pads_itself(reader: NodeProto, name: str, count: int) -> bool:
    attributes = _attributes(reader)
    own: Sequence[int] = attributes.get("pads", [0] * count)
    return (
        reader.op_type == "Conv"
        and list(reader.input).index(name) == 0
        and list(reader.input).count(name) == 1
        and attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and len(own) == count
    )


def _values(name: str, constants: dict[str, TensorProto]) -> Any:
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
