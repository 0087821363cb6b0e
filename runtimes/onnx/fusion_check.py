"""Whether two ONNX graphs of a text encoder compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.onnx.encoder_facts import EncoderFacts
from headrace.runtimes.onnx.operators import register
from headrace.runtimes.onnx.options import THREADS, session_options

TOLERANCE: Final = 1e-4
"""Largest difference that is accepted, relative to the largest value of an output where that is above 1."""

_LENGTHS: Final = ((7,), (33, 12, 1), (128, 70))
"""Tokens in the rows of the batches that are compared."""

_SPARE_POSITIONS: Final = 4
"""Positions at the beginning of the table that families like RoBERTa do not use, generously."""

_SEED: Final = 20
_LEAST_ID: Final = 5  # ids below are often special; padding must not occur inside of a row
_SOME_IDS: Final = 100  # where the size of the vocabulary is not known
_DTYPES: Final = (("tensor(int64)", np.int64), ("tensor(int32)", np.int32))


class DifferentGraphsError(Exception):
    """The graphs do not compute the same, or cannot be compared; the text says why."""


def compare(plain: Path, other: Path, facts: EncoderFacts, pad_id: int) -> float:
    """Run both graphs on the same batches of random token ids, the rows padded on the right.

    Args:
        plain: graph with the inputs of a text encoder (``input_ids``, ``attention_mask``, …).
        other: what should compute the same.
        facts: bounds of ids and lengths.
        pad_id: fills rows.

    Returns:
        The largest difference of an output at positions that are no padding, relative as ``TOLERANCE``.

    Raises:
        DifferentGraphsError: inputs or outputs have other names or types, the difference is above
            ``TOLERANCE``, or a graph cannot be run.
    """
    try:
        # One after another: both sessions at once would need the memory of both.
        signature, expected, masks = _run(plain, facts, pad_id)
        found_signature, found, _ = _run(other, facts, pad_id)
    except DifferentGraphsError:
        raise
    except Exception as error:
        raise DifferentGraphsError(f"a graph cannot be run: {error}") from error
    if signature != found_signature:
        raise DifferentGraphsError(f"inputs or outputs changed from {signature} to {found_signature}")
    worst = 0.0
    for batch, other_batch, mask in zip(expected, found, masks, strict=True):
        for one, another in zip(batch, other_batch, strict=True):
            worst = max(worst, _difference(one, another, mask))
    if worst > TOLERANCE:
        raise DifferentGraphsError(f"outputs differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def _run(
    file: Path, facts: EncoderFacts, pad_id: int
) -> tuple[list[tuple[str, str]], list[list[NDArray[Any]]], list[NDArray[np.bool_]]]:
    """Return names and types of a graph's inputs and outputs, its outputs of each batch, and the masks."""
    options = session_options({THREADS: "1"})
    register(options)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(_SEED)
    results: list[list[NDArray[Any]]] = []
    masks: list[NDArray[np.bool_]] = []
    for lengths in _LENGTHS:
        feed, mask = _batch(session.get_inputs(), lengths, facts, pad_id, random)
        results.append(session.run(None, feed))
        masks.append(mask)
    nodes = (*session.get_inputs(), *session.get_outputs())
    return [(node.name, node.type) for node in nodes], results, masks


def _batch(
    inputs: Sequence[Any],
    lengths: Sequence[int],
    facts: EncoderFacts,
    pad_id: int,
    random: np.random.Generator,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Make a batch of rows of ``lengths`` tokens, or as near as the graph's own dimensions allow."""
    fixed = next((node.shape for node in inputs if node.name == "input_ids"), None)
    if fixed is None or len(fixed) != 2:
        raise DifferentGraphsError("the graph has no input_ids [batch, sequence]")
    if facts.positions:
        lengths = [max(1, min(length, facts.positions - _SPARE_POSITIONS)) for length in lengths]
    if isinstance(fixed[0], int):
        lengths = [lengths[row % len(lengths)] for row in range(fixed[0])]
    width = fixed[1] if isinstance(fixed[1], int) else max(lengths)
    mask = np.arange(width) < np.array(lengths)[:, None]
    ids = random.integers(_LEAST_ID, max(facts.vocabulary or _SOME_IDS, _LEAST_ID + 1), mask.shape)
    ids[ids == pad_id] = _LEAST_ID if pad_id != _LEAST_ID else _LEAST_ID + 1
    values: dict[str, NDArray[Any]] = {
        "input_ids": np.where(mask, ids, pad_id),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, min(max(facts.types, 1), 2), mask.shape) * mask,
        "position_ids": np.tile(np.arange(width), (len(mask), 1)),
    }
    dtypes = dict(_DTYPES)
    for node in inputs:
        if node.name not in values or node.type not in dtypes:
            raise DifferentGraphsError(f"input '{node.name}' ({node.type}) is not that of a text encoder")
    return {node.name: values[node.name].astype(dtypes[node.type]) for node in inputs}, mask


def _difference(expected: NDArray[Any], found: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Return how far two outputs are apart; infinite where they have different shapes or no numbers."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.shape[:2] == mask.shape:
        expected, found = expected[mask], found[mask]
    if not expected.size:
        return 0.0
    apart = np.abs(expected.astype(np.float64) - found).max() / max(1.0, float(np.abs(expected).max()))
    return float(apart) if np.isfinite(apart) else float("inf")
