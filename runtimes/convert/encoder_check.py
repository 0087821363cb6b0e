"""Compares an exported encoder with torch, and times it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from headrace.runtimes.convert.sentence_encoder import INPUTS
from headrace.runtimes.convert.sessions import open_session
from headrace.runtimes.convert.tracing import Function, run

if TYPE_CHECKING:
    import torch

SHAPES: Final = ((1, 1), (1, 9), (3, 40), (8, 64), (2, 256), (1, 512))
"""Batch and length of the random inputs that the graph is compared to torch on."""
TIMED_SHAPE: Final = (4, 60)
ROUNDS: Final = 15

Inputs = dict[str, npt.NDArray[np.int64]]


def random_inputs(shape: Sequence[int], *, seed: int = 0) -> Inputs:
    """Random token ids, each row but the first padded to a length of its own."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(999, 30000, shape)
    lengths = generator.integers(1, shape[1] + 1, shape[0])
    lengths[0] = shape[1]
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return dict(zip(INPUTS, (ids * mask, mask, np.zeros_like(mask)), strict=True))


def difference(function: Function, model: torch.nn.Module, path: Path) -> float:
    """Largest absolute difference to torch over :data:`SHAPES`, at the tokens that are not padding."""
    session, worst = open_session(path), 0.0
    for seed, shape in enumerate(SHAPES):
        inputs = random_inputs(shape, seed=seed)
        expected = run(function, model, inputs)
        real = inputs["attention_mask"][..., None] > 0
        worst = max(worst, float(np.abs((session.run(None, inputs)[0] - expected) * real).max()))
    return worst


def best_seconds(paths: Mapping[str, Path]) -> dict[str, float]:
    """Best time of one run on :data:`TIMED_SHAPE`, one thread, the graphs taking turns."""
    sessions = {name: open_session(path, threads=1) for name, path in paths.items()}
    inputs, best = random_inputs(TIMED_SHAPE), dict.fromkeys(paths, float("inf"))
    inputs["attention_mask"][:] = 1
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, inputs)
            best[name] = min(best[name], time.perf_counter() - started)
    return best
