"""Edits of ONNX graphs that several rewritings share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def keep(field: Any, kept: Iterable[Any]) -> None:
    """Let a repeated field have these elements, which may be some of its own."""
    kept = list(kept)
    del field[:]
    field.extend(kept)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let ``graph`` have ``nodes`` for its own; constants that none of them reads are dropped."""
    keep(graph.node, nodes)
    used = {name for node in graph.node for name in node.input}
    keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
