"""Decoders whose linear layers are computed by an operator of our own, ``native/linear.c``.

ONNX Runtime's MatMul is made for many rows; a step decodes few. Ours reads weights once, from front to back,
and is shared out in pieces, so that a thread which is held up does not hold up the others. The weights are
laid out here and handed to the session, which copies them. Where there is no such operator, for want of a
compiler when Headrace was installed or of AVX2, the graph is loaded as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.graph_edits import replace_nodes
from headrace.runtimes.onnx.operators import DOMAIN, NO_ACTIVATION, WIDTH, panels, register
from headrace.runtimes.onnx.options import CPU, Provider, optimises, session_options

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_FOLDER: Final = "session.model_external_initializers_file_folder_path"


def load_linear(
    file: Path, options: Mapping[str, str], chosen: Sequence[Provider]
) -> ort.InferenceSession | None:
    """Load a decoder whose float32 linear layers are ours; None where none can be.

    Args:
        file: a graph made by ``headrace convert``.
        options: of the session.
        chosen: its execution providers.
    """
    made = session_options(options)
    if list(chosen) != [CPU] or not optimises(options) or not register(made):
        return None
    try:
        return _load(file, made)
    except Exception as error:  # noqa: BLE001 - the plain graph is there whatever it is
        sys.stderr.write(f"{file}: linear layers are left to ONNX Runtime: {error}\n")
        return None


def _load(file: Path, options: ort.SessionOptions) -> ort.InferenceSession | None:
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    weights = _rewrite(model, file.parent)
    if not weights:
        return None
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    options.add_session_config_entry(_FOLDER, str(file.parent))
    return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def _rewrite(model: ModelProto, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Replace linear layers in place; returns the weights of those that stand for them, by name."""
    from onnx import helper

    graph = model.graph
    weights: dict[str, NDArray[np.float32]] = {}
    for node, tensor, transposed in _linear(graph):
        name = f"{tensor.name}/{'transposed_' if transposed else ''}panels"
        if name not in weights:
            weights[name] = panels(_read(tensor, folder), transposed=transposed)
            graph.initializer.append(_elsewhere(name, weights[name].shape))
        node.op_type, node.domain = "Linear", DOMAIN
        node.input[1] = name
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("activation", NO_ACTIVATION))
    replace_nodes(graph, list(graph.node))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return weights


def _linear(graph: GraphProto) -> Iterator[tuple[NodeProto, TensorProto, bool]]:
    """Yield what can be replaced, its weights, and whether these are [columns, terms]."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("MatMul", "FusedMatMul"):
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        transposed = attributes == {"transB": 1}
        tensor = constants.get(node.input[1])
        if tensor is None or (attributes and not transposed):
            continue
        if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2:
            columns = tensor.dims[0 if transposed else 1]
            if columns and columns % WIDTH == 0:
                yield node, tensor, transposed


def _read(tensor: TensorProto, folder: Path) -> Any:
    from onnx import TensorProto, numpy_helper

    # what is read stays in the message, so that is one of its own
    alone = TensorProto()
    alone.CopyFrom(tensor)
    return numpy_helper.to_array(alone, str(folder))


def _elsewhere(name: str, shape: Sequence[int]) -> TensorProto:
    """Return an initializer whose values the session is given."""
    from onnx import TensorProto

    made = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value="given")
    return made
