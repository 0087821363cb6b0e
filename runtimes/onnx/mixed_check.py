"""Whether the form of a decoder graph that decodes beside prompts computes what the graph does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.onnx.decoder_graph import DecoderGraph
from headrace.runtimes.onnx.decoder_runs import Part, Runs, decodes, prompts

TOLERANCE: Final = 1e-4
"""Largest difference of logits and of what is kept, relative to the largest value where that is above 1."""

_ROWS: Final = 6
_ROW_TOKENS: Final = 32
_SEED: Final = 22
_MOST_ID: Final = 100


class DifferentDecodersError(Exception):
    """They do not compute the same; the text says how far they are apart."""


def compare(plain: ort.InferenceSession, mixed: ort.InferenceSession) -> float:
    """Decode three rows and compute prompts: by two runs of ``plain``, and by one of ``mixed``.

    The prompts are one behind a past, and then two that begin and of which one is padded.

    Returns:
        The largest difference, relative as ``TOLERANCE``.

    Raises:
        DifferentDecodersError: it is above ``TOLERANCE``.
        ModelError: ``plain`` is no decoder, or one of them cannot be run.
    """
    graph = DecoderGraph(plain)
    random = np.random.default_rng(_SEED)

    def ids(count: int) -> list[int]:
        found: list[int] = random.integers(0, min(graph.vocabulary_size, _MOST_ID), count).tolist()
        return found

    shape = (len(graph.caches), _ROWS, graph.heads, _ROW_TOKENS, graph.head_size)
    before = random.standard_normal(shape).astype(graph.dtype)
    ahead = decodes(ids(3), (4, 0, 9), (0, 2))
    worst = 0.0
    for behind in (prompts(3, [ids(6)], 5, (2,)), prompts(4, [ids(7), ids(5)], 0, (1, 1))):
        apart = Runs(plain, graph, before.copy())
        beside = Runs(plain, graph, before.copy(), mixed)
        for runs in (apart, beside):
            runs.begin(ahead.wanted.size + behind.wanted.size)
        apart.run(ahead)
        apart.run(behind)
        beside.run_beside(ahead, behind)
        worst = max(worst, _difference(apart.logits, beside.logits))
        worst = max(worst, _difference(*(_written(runs.rows, (ahead, behind)) for runs in (apart, beside))))
    if worst > TOLERANCE:
        raise DifferentDecodersError(f"outputs differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def _written(rows: NDArray[Any], parts: Sequence[Part]) -> NDArray[Any]:
    """Return the keys and values that the runs wrote, padding left out."""
    found = []
    for part in parts:
        for index, last in enumerate(part.lengths.tolist()):
            width = min(part.ids.shape[1], last + 1)
            found.append(rows[:, part.row + index, :, last + 1 - width : last + 1])
    return np.concatenate(found, axis=2)


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    apart = np.abs(expected.astype(np.float64) - found).max()
    worst = float(apart / max(1.0, float(np.abs(expected).max())))
    return worst if np.isfinite(worst) else float("inf")
