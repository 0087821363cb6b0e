"""The child process that fuses one graph: ``python -m headrace.runtimes.onnx.fusing``.

A process of its own, for the optimiser and a second copy of the model would stay in a worker's memory. It
prints one line: what was fused (status 0), or why nothing was (status 1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.runtimes.onnx import child
from headrace.runtimes.onnx.encoder_facts import EncoderFacts, read_facts
from headrace.runtimes.onnx.fusion_cache import forms_of
from headrace.runtimes.onnx.fusion_check import DifferentGraphsError, compare

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST: Final = 600_000_000
"""Bytes of a graph with its weights: the optimiser copies a graph often and needs some seven times as much
memory."""

_FUSED: Final = frozenset({"Attention", "MultiHeadAttention"})


class NotFusedError(Exception):
    """There is nothing to gain from a graph, or it cannot be fused; the text says why."""


def fuse(model: Path, target: Path, facts: EncoderFacts, pad_id: int, *, operators: bool = False) -> str:
    """Write ``model`` with its attention as single operators, once it is known to compute the same.

    If it can be done, a form that packs texts is written beside it (``packing``).

    Args:
        model: a text encoder in float32.
        target: file to write; it may exist after an error too.
        facts: sizes of the encoder.
        pad_id: fills rows.
        operators: whether to write, beside the packed form, one with our own operators (``encoder_graph``).

    Returns:
        What was done, for people.

    Raises:
        NotFusedError: nothing was fused, or not safely.
    """
    if facts.windowed:
        # A window may be longer than any batch that is compared.
        raise NotFusedError("some layers attend to a window only")
    _check(model)
    count = _write(model, target, facts)
    try:
        difference = compare(model, target, facts, pad_id)
    except DifferentGraphsError as error:
        raise NotFusedError(str(error)) from error
    done = f"{count} attention operators; outputs differ by {difference:.1e} at most"
    return f"{done}; {_pack(model, target, facts, pad_id, operators=operators)}"


def _pack(model: Path, fused: Path, facts: EncoderFacts, pad_id: int, *, operators: bool) -> str:
    """Write the forms of ``fused`` that pack texts and compute the same as ``model``.

    Returns:
        What was done, for people.
    """
    import onnx

    from headrace.runtimes.onnx.encoder_graph import NotRewrittenError, use_operators
    from headrace.runtimes.onnx.packing import NotPackedError, pack

    _, packed, changed = forms_of(fused)
    graph = onnx.load(str(fused))
    try:
        pack(graph)
        done = f"texts are packed between them, which {_keep(model, graph, packed, facts, pad_id)}"
    except (NotPackedError, DifferentGraphsError) as error:
        return f"texts are padded: {error}"
    if not operators:
        return done
    try:
        count = use_operators(graph)
        return f"{done}; {count} operators of our own, which {_keep(model, graph, changed, facts, pad_id)}"
    except (NotRewrittenError, DifferentGraphsError) as error:
        return f"{done}; no operators of our own: {error}"


def _keep(model: Path, graph: ModelProto, target: Path, facts: EncoderFacts, pad_id: int) -> str:
    """Write ``graph`` if it computes the same as ``model``; returns how far it is from that, for people.

    Raises:
        DifferentGraphsError: it does not.
    """
    import onnx

    onnx.save(graph, str(target))
    try:
        return f"differs by {compare(model, target, facts, pad_id):.1e}"
    except DifferentGraphsError:
        target.unlink(missing_ok=True)
        raise


def _write(model: Path, target: Path, facts: EncoderFacts) -> int:
    """Write the fused graph and return how many operators for attention it has, at least 1.

    Raises:
        NotFusedError: it would have none.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    # On CPUs the fused form is slower than an addition and a layer norm.
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_embed_layer_norm = False
    try:
        made = optimize_model(
            str(model),
            model_type="bert",
            num_heads=facts.heads,
            hidden_size=facts.width,
            optimization_options=options,
            opt_level=0,
        )
    except Exception as error:  # the optimiser does not expect graphs that are no encoders
        reason = f"{type(error).__name__}: {error}"
        raise NotFusedError(f"the optimiser does not know this graph ({reason})") from error
    count = sum(node.op_type in _FUSED for node in made.model.graph.node)
    if not count:
        raise NotFusedError("no attention that the optimiser knows")
    made.save_model_to_file(str(target))
    return count


def _check(model: Path) -> None:
    """Refuse a graph that is too large, not in float32, or has operators for attention already.

    Raises:
        NotFusedError: it is one of these.
    """
    import onnx
    from onnx import TensorProto, external_data_helper

    graph = onnx.load(str(model), load_external_data=False).graph
    if any(node.op_type in _FUSED for node in graph.node):
        raise NotFusedError("the graph has operators for attention already")
    number = {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
    size, places = model.stat().st_size, set[str]()
    for tensor in graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type not in number:
            kind = TensorProto.DataType.Name(tensor.data_type)
            raise NotFusedError(f"weights are {kind}, not FLOAT")
        if external_data_helper.uses_external_data(tensor):
            places.add(external_data_helper.ExternalDataInfo(tensor).location)
    size += sum((model.parent / place).stat().st_size for place in places)
    if size > LARGEST:
        raise NotFusedError(f"{size} bytes are more than {LARGEST}")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuse the graph that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="headrace-fusing", description="Fuse the attention of a graph.")
    parser.add_argument("model", type=Path, help="the graph")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--config", type=Path, help="config.json of the encoder")
    parser.add_argument("--pad", type=int, default=0, help="id that fills rows")
    parser.add_argument("--operators", action="store_true", help="write the form with our own operators too")
    parser.add_argument("--parent", type=int, required=True, help="process id of the worker")
    arguments = parser.parse_args(argv)
    return child.serve(
        arguments.parent,
        lambda: fuse(
            arguments.model,
            arguments.target,
            read_facts(arguments.config),
            arguments.pad,
            operators=arguments.operators,
        ),
        NotFusedError,
    )


if __name__ == "__main__":
    sys.exit(main())
