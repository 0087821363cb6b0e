"""Sessions of graphs that were made for a model before, and are kept on the disk."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import onnxruntime as ort

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.onnx.operators import register
from headrace.runtimes.onnx.options import GRAPH_LEVEL, LEVEL_OFF, Provider, session_options
from headrace.runtimes.onnx.sharing import shared_graph, wants_sharing


class Kept(Protocol):
    """Where a graph is kept."""

    def discard(self) -> None:
        """Forget it, so that the next load makes it again."""


def load_kept(
    graph: Path, entry: Kept, options: Mapping[str, str], chosen: Sequence[Provider]
) -> ort.InferenceSession | None:
    """Load a graph that was kept; None, and its entry is dropped, when that fails."""
    made = session_options(options)
    register(made)
    try:
        return ort.InferenceSession(str(graph), made, providers=chosen)
    except Exception as error:  # noqa: BLE001 - the plain graph is there whatever it is
        entry.discard()
        sys.stderr.write(f"{graph}: a kept graph cannot be loaded, a plainer one serves: {error}\n")
        return None


def load_shared(
    instance: InstanceSpec,
    model: Path,
    graph: Path,
    options: Mapping[str, str],
    chosen: Sequence[Provider],
    *,
    mixed: bool = False,
) -> ort.InferenceSession | None:
    """Load the form of ``graph`` whose weights all sessions share, made now if it was never tried.

    Args:
        instance: says where such forms are kept, and whether they are wanted.
        model: the model file.
        graph: the form of it that is to be loaded.
        options: of the session.
        chosen: its execution providers.
        mixed: see ``sharing.shared_graph``.

    Returns:
        None when there is none, or it cannot be loaded.
    """
    if not wants_sharing(instance, chosen):
        return None
    shared = shared_graph(Path(instance.weight_cache), model, graph, instance.options, mixed=mixed)
    if shared is None:
        return None
    # it has been optimised
    return load_kept(shared.file, shared, {**options, GRAPH_LEVEL: LEVEL_OFF}, chosen)
