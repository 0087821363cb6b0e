"""The child process that prepares one graph: ``python -m headrace.runtimes.onnx.preparing``.

It prints one line: what was done (status 0), or why nothing was (status 1).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.datatypes import BYTES, NUMPY_TYPES
from headrace.runtimes.onnx import child, mixed_check
from headrace.runtimes.onnx.mixed_graph import NotMixedError, mix
from headrace.runtimes.onnx.operators import register
from headrace.runtimes.onnx.options import CPU, GRAPH_LEVEL, LEVEL_BASIC, LEVEL_OFF, THREADS, session_options
from headrace.runtimes.onnx.types import tensor_spec

GRAPH: Final = "graph.onnx"
WEIGHTS: Final = "weights.bin"
"""Files of a prepared graph."""

_SIZES: Final = (2, 1, 8)
"""Tried for the dimensions that a graph leaves open."""

_TOLERANCE: Final = 1e-6
_SEED: Final = 21
_SAVING: Final = MappingProxyType({"session.optimized_model_external_initializers_file_name": WEIGHTS})
_LAID_OUT: Final = "session.save_external_prepacked_constant_initializers"
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
Feed = dict[str, NDArray[Any]]


class NotPreparedError(Exception):
    """There is nothing to share, or it cannot be done; the text says why."""


def prepare(graph: Path, folder: Path, options: Mapping[str, str], *, mixed: bool = False) -> str:
    """Write what ONNX Runtime makes of ``graph`` to ``folder``, once it is known to compute the same.

    Args:
        graph: the graph.
        folder: where :data:`GRAPH` and :data:`WEIGHTS` are written; they may be there after an error too.
        options: of the sessions that will load it.
        mixed: whether to write the form of a decoder that decodes beside prompts.

    Returns:
        What was done, for people.

    Raises:
        NotPreparedError: ONNX Runtime cannot, there is no such form, or it computes something else.
    """
    target = folder / GRAPH
    try:
        if mixed:
            _write_mixed(graph, target, options)
        else:
            _write(graph, target, options)
            _compare(_session(graph, options), _session(target, {**options, GRAPH_LEVEL: LEVEL_OFF}))
        size = (folder / WEIGHTS).stat().st_size
    except (NotPreparedError, MemoryError, OSError):  # the last two may not come another time
        raise
    except (NotMixedError, ModelError, mixed_check.DifferentDecodersError) as error:
        raise NotPreparedError(str(error)) from error
    except Exception as error:
        raise NotPreparedError(f"{type(error).__name__}: {error}") from error
    return f"{size} bytes of weights"


def _write(graph: Path, target: Path, options: Mapping[str, str]) -> None:
    """Write what ONNX Runtime makes of ``graph``, whose convolutions pad for themselves where they can."""
    saving = {**options, **_SAVING, _LAID_OUT: "1"}
    if not find_spec("onnx"):
        _session(graph, saving, target)
        return
    import onnx

    from headrace.runtimes.onnx.padding import PADDING, fold_padding

    source: Path | bytes = graph
    with TemporaryDirectory(dir=target.parent) as folder:
        if any(
            node.op_type == PADDING for node in onnx.load(str(graph), load_external_data=False).graph.node
        ):
            # how much is padded is often computed, but from constants
            simpler = Path(folder) / GRAPH
            _session(graph, {**options, **_SAVING, GRAPH_LEVEL: LEVEL_BASIC}, simpler)
            model = onnx.load(str(simpler), load_external_data=False)
            if fold_padding(model.graph):
                source, saving[_WEIGHTS_FOLDER] = model.SerializeToString(), folder
        _session(source, saving, target)


def _write_mixed(graph: Path, target: Path, options: Mapping[str, str]) -> None:
    """Write the form of a decoder that decodes beside prompts.

    Raises:
        NotMixedError: there is none.
        ModelError: one of them cannot be run.
        DifferentDecodersError: what was written computes something else.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    mix(model.graph)
    changed = model.SerializeToString()
    for laid_out in ("1", "0"):
        saving = {**options, **_SAVING, _LAID_OUT: laid_out, _WEIGHTS_FOLDER: str(graph.parent)}
        _session(changed, saving, target)
        try:
            mixed_check.compare(
                _session(graph, options), _session(target, {**options, GRAPH_LEVEL: LEVEL_OFF})
            )
        except mixed_check.DifferentDecodersError:
            # ONNX Runtime 1.31 reads weights of 4 and 8 bits back wrongly once they are laid out.
            if laid_out == "0":
                raise
        else:
            return


def _session(
    graph: Path | bytes, options: Mapping[str, str], target: Path | None = None
) -> ort.InferenceSession:
    """Load ``graph``, and write what was made of it to ``target``."""
    chosen = session_options({**options, THREADS: "1"})
    register(chosen)
    if target is not None:
        chosen.optimized_model_filepath = str(target)
    model = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(model, chosen, providers=[CPU])


def _compare(plain: ort.InferenceSession, prepared: ort.InferenceSession) -> None:
    """Run both on the first inputs that ``plain`` takes.

    Raises:
        NotPreparedError: it takes none that could be thought of, or the outputs differ.
    """
    for feed in _feeds(plain.get_inputs()):
        try:
            expected = plain.run(None, feed)
        except Exception:  # noqa: BLE001, S112 - not every size suits every graph
            continue
        try:
            found = prepared.run(None, feed)
        except Exception as error:
            raise NotPreparedError(f"what was written cannot be run: {error}") from error
        if not all(map(_same, expected, found)):
            raise NotPreparedError("what was written computes something else")
        return
    raise NotPreparedError("no inputs were found on which it could be tried")


def _feeds(inputs: Sequence[Any]) -> Iterator[Feed]:
    """Yield inputs to try: zeros and ones in any order, all ones, all zeros; fractions where they may be."""
    random = np.random.default_rng(_SEED)
    for size in _SIZES:
        for low, high in ((0, 2), (1, 2), (0, 1)):
            feed: Feed = {}
            for node in inputs:
                spec = tensor_spec(node)
                shape = [size if dim < 0 else dim for dim in spec.shape]
                dtype = NUMPY_TYPES[spec.datatype]
                values = random.random(shape) if dtype.kind == "f" else random.integers(low, high, shape)
                feed[node.name] = values.astype(str if spec.datatype == BYTES else dtype)
            yield feed


def _same(expected: NDArray[Any], found: NDArray[Any]) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind != "f":
        return np.array_equal(expected, found)
    return np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the graph that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="headrace-preparing", description="Prepare a graph for sharing.")
    parser.add_argument("graph", type=Path, help="the graph")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--options", type=json.loads, default={}, help="of its sessions, as JSON")
    parser.add_argument("--mixed", action="store_true", help="the form of a decoder that mixes")
    parser.add_argument("--parent", type=int, required=True, help="process id of the worker")
    arguments = parser.parse_args(argv)
    return child.serve(
        arguments.parent,
        lambda: prepare(arguments.graph, arguments.folder, arguments.options, mixed=arguments.mixed),
        NotPreparedError,
    )


if __name__ == "__main__":
    sys.exit(main())
