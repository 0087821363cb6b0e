"""Text encoders with fused attention: one operator for what exporters write as some thirty.

ONNX Runtime finds attention by itself only in graphs of a few exporters. Its offline optimiser finds it in
more of them, but needs further packages, seconds, and memory. So a graph is fused once, in a process of
its own, compared with the plain one, and kept. Whatever goes wrong, the plain graph is served.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.onnx import child
from headrace.runtimes.onnx.encoder_facts import find_config
from headrace.runtimes.onnx.fusing import LARGEST
from headrace.runtimes.onnx.fusion_cache import Entry
from headrace.runtimes.onnx.operators import available
from headrace.runtimes.onnx.options import CPU, Provider, optimises

SMALLEST: Final = 4 << 20
"""Bytes of a graph with its weights: a run of a smaller one takes less than what surrounds it."""

_CHILD: Final = "headrace.runtimes.onnx.fusing"
_NEEDED: Final = ("onnx", "sympy")
"""Packages that the optimiser needs beside ONNX Runtime; without them graphs run as they are."""


def wants_fusion(instance: InstanceSpec, chosen: Sequence[Provider]) -> bool:
    """Whether an instance is a text encoder on the CPU, with fusion and optimisation not switched off."""
    return bool(
        instance.graph_cache
        and instance.text is not None
        and list(chosen) == [CPU]
        and optimises(instance.options)
    )


def fused_entry(model: Path, cache: Path, *, pad_id: int = 0, smallest: int = SMALLEST) -> Entry | None:
    """Return where the fused form of a text encoder is, made now if it was never tried.

    Of several processes that ask at once, one makes it and the others wait.

    Args:
        model: the graph.
        cache: folder that keeps fused graphs.
        pad_id: fills rows.
        smallest: graphs with fewer bytes are not fused.

    Returns:
        An entry whose ``graph`` is there; None when the plain graph has to do. What is worth knowing is
        written to standard error, once.
    """
    try:
        size = sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*") if file.is_file())
        if not smallest <= size <= LARGEST or not all(map(find_spec, _NEEDED)):
            return None
        config = find_config(model)
        operators = available()
        entry = Entry(cache, model, [pad_id] if config is None else [pad_id, config], operators=operators)
        outcome = entry.read()
        if outcome is None:
            with entry.locked():
                if (outcome := entry.read()) is None:
                    _make(entry, model, config, pad_id, operators=operators)
                    outcome = entry.read()
    except OSError as error:
        _say(model, f"attention not fused: {error}")
        return None
    return entry if outcome is not None and outcome.size else None


def _make(entry: Entry, model: Path, config: Path | None, pad_id: int, *, operators: bool) -> None:
    """Have a child process fuse the graph, and keep what came of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    target = entry.temporary()
    arguments: list[str | Path] = [model, target, "--pad", str(pad_id)]
    if config is not None:
        arguments += ["--config", config]
    if operators:
        arguments.append("--operators")
    end = child.run(_CHILD, arguments)
    entry.keep(end.text, target if end.done else None, passing=end.passing)
    if not end.done:
        _say(model, f"attention not fused: {end.text}")


def _say(model: Path, text: str) -> None:
    sys.stderr.write(f"{model}: {text}\n")
