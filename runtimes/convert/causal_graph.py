"""Changes the ends of an exported decoder graph to what a continuous-batching engine feeds and wants.

The exporter's graph takes an attention mask [batch, total] and gives logits for every position. Here a row's
length and the longest length are inputs themselves (what the mask is only reduced to), and the last linear
layer, the largest of all, runs only for the positions that are asked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.convert.job import ConversionError
from headrace.runtimes.graph_edits import keep, replace_nodes

LENGTHS: Final = "seqlens_k"
"""int32 [batch]: tokens in a row's KV cache after this run, minus 1; so GroupQueryAttention wants it."""
TOTAL: Final = "total_sequence_length"
"""int32 [1]: the longest row's length after this run."""
POSITIONS: Final = "logit_positions"
"""int64 [count]: which of the batch * sequence positions get logits."""
LOGITS: Final = "logits"
HIDDEN: Final = "logits/hidden"
"""What the last linear layer reads, [count, width]."""
_ATTENTION: Final = "GroupQueryAttention"
_LENGTHS_AT: Final = 5
_TOTAL_AT: Final = 6
_HEADS: Final = frozenset({"MatMul", "MatMulNBits", "Gemm"})
_AFTER_HEAD: Final = frozenset({"Add", "Cast", "Div", "Mul", "Tanh", "Where"})
"""What an architecture may do with logits: bias, scale, soft cap, mask out ids."""


def adapt(model: onnx.ModelProto, *, head_size: int, window: int = 0) -> onnx.ModelProto:
    """Change ``model`` in place and return it.

    ``window`` is how many tokens back every layer looks, 0 for all; it counts where the exporter set none.

    Raises:
        ConversionError: the graph is not a decoder whose layers are all grouped-query attention with a KV
            cache (state-space layers, for one, cannot be paged in and out by token).
    """
    graph = model.graph
    _feed_lengths(graph)
    _look_back(graph, window)
    _choose_logits(graph)
    _share_embedding(graph)
    _drop_unused(graph)
    left = {value.name for value in graph.input} - {"input_ids", "position_ids", LENGTHS, TOTAL, POSITIONS}
    if strange := sorted(name for name in left if not name.startswith("past_key_values.")):
        msg = f"the exported graph has inputs that are not served: {', '.join(strange)}"
        raise ConversionError(msg)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            dim = value.type.tensor_type.shape.dim
            if len(dim) != 4 or not dim[1].dim_value:
                msg = f"'{value.name}' is no KV cache of [batch, heads, length, size]"
                raise ConversionError(msg)
            dim[3].dim_value = head_size
            dim[2].dim_param = "row_length"
    return model


def _feed_lengths(graph: onnx.GraphProto) -> None:
    layers = [node for node in graph.node if node.op_type == _ATTENTION]
    caches = sum(value.name.startswith("past_key_values.") for value in graph.input)
    if not layers or caches != 2 * len(layers):
        msg = f"the exported graph has {len(layers)} {_ATTENTION} layers and {caches} cache inputs"
        raise ConversionError(msg)
    for node in layers:
        node.input[_LENGTHS_AT], node.input[_TOTAL_AT] = LENGTHS, TOTAL
    graph.input.extend(
        [
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info(TOTAL, TensorProto.INT32, [1]),
        ]
    )


def _look_back(graph: onnx.GraphProto, window: int) -> None:
    found = [
        attribute
        for node in graph.node
        if node.op_type == _ATTENTION
        for attribute in node.attribute
        if attribute.name == "local_window_size"
    ]
    if window and all(attribute.i < 1 for attribute in found):
        for attribute in found:
            attribute.i = window


def _choose_logits(graph: onnx.GraphProto) -> None:
    """Gather the hidden states of the wanted positions in front of the last linear layer."""
    producers = {name: node for node in graph.node for name in node.output}
    head = producers.get(LOGITS)
    constants = {value.name for value in graph.initializer}
    while head is not None and head.op_type in _AFTER_HEAD:
        sources = [producers[name] for name in head.input if name in producers and name not in constants]
        grown = [node for node in sources if node.op_type != "Constant"]
        head = grown[-1] if grown else None
    if head is None or head.op_type not in _HEADS:
        msg = "the exported graph does not end in a linear layer"
        raise ConversionError(msg)
    output = next(value for value in graph.output if value.name == LOGITS)
    vocabulary = output.type.tensor_type.shape.dim[-1].dim_value
    hidden = head.input[0]
    graph.initializer.append(_flat_shape(graph, hidden))
    at = list(graph.node).index(head)
    for offset, node in enumerate(
        (
            helper.make_node("Reshape", [hidden, "logits/shape"], ["logits/flat"], name="logits/Reshape"),
            helper.make_node("Gather", ["logits/flat", POSITIONS], [HIDDEN], name="logits/Gather"),
        )
    ):
        graph.node.insert(at + offset, node)
    head.input[0] = HIDDEN
    graph.input.append(helper.make_tensor_value_info(POSITIONS, TensorProto.INT64, ["logit_count"]))
    element = output.type.tensor_type.elem_type
    output.CopyFrom(helper.make_tensor_value_info(LOGITS, element, ["logit_count", vocabulary]))


def _share_embedding(graph: onnx.GraphProto) -> None:
    """Let the embedding and a last layer that is tied to it read one matrix, [vocabulary, width].

    The exporter writes it as the last layer wants it, transposed, and turns it round for the embedding: with
    every load, and into memory of its own.
    """
    constants = {value.name: value for value in graph.initializer}
    for turn in [node for node in graph.node if node.op_type == "Transpose"]:
        name = turn.input[0]
        readers = [node for node in graph.node if name in node.input and node is not turn]
        lookups = [node for node in graph.node if turn.output[0] in node.input]
        if name not in constants or [node.op_type for node in readers] != ["MatMul"]:
            continue
        if readers[0].input[1] != name or any(node.op_type != "Gather" for node in lookups):
            continue
        matrix = np.ascontiguousarray(numpy_helper.to_array(constants[name]).T)
        constants[name].CopyFrom(numpy_helper.from_array(matrix, name))
        readers[0].op_type, readers[0].domain = "FusedMatMul", "com.microsoft"
        readers[0].attribute.append(helper.make_attribute("transB", 1))
        for node in lookups:
            node.input[0] = name
        graph.node.remove(turn)


def _flat_shape(graph: onnx.GraphProto, hidden: str) -> onnx.TensorProto:
    for value in graph.value_info:
        if value.name == hidden and (width := value.type.tensor_type.shape.dim[-1].dim_value):
            return numpy_helper.from_array(np.array([-1, width], np.int64), "logits/shape")
    msg = f"the exported graph does not say how wide '{hidden}' is"
    raise ConversionError(msg)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, inputs, constants and shapes that no output needs any more."""
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
    replace_nodes(graph, [node for node in graph.node if wanted.intersection(node.output)])
    keep(graph.input, [value for value in graph.input if value.name in wanted])
    # Shapes of values behind the changed ends would be wrong.
    del graph.value_info[:]
