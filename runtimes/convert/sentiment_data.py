"""Human-rated snippets of the VADER project (Hutto and Gilbert, ICWSM 2014) as texts and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from headrace.runtimes.convert.archives import from_tar

FILES: Final = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
LABELS: Final = ("negative", "neutral", "positive")
BOUND: Final = 0.6
"""Mean ratings lie in -4…4; nearer to zero than this counts as neutral."""


def label(rating: float) -> int:
    """The index in :data:`LABELS` of a mean rating."""
    return 0 if rating < -BOUND else 2 if rating > BOUND else 1


def load(source: Path, per_file: int, *, seed: int = 0) -> tuple[list[str], list[int]]:
    """``per_file`` snippets of each file of the source distribution, drawn by ``seed``, with their labels."""
    inner = from_tar(source.read_bytes(), "additional_resources/hutto_ICWSM_2014.tar.gz")
    texts: list[str] = []
    labels: list[int] = []
    for name in FILES:
        lines = from_tar(inner, f"{name}_GroundTruth.txt").decode("utf-8", errors="replace").split("\n")
        rows = [fields for line in lines if len(fields := line.split("	")) == 3 and fields[2].strip()]
        for index in np.random.default_rng(seed).permutation(len(rows))[:per_file]:
            _, rating, text = rows[index]
            texts.append(text.strip())
            labels.append(label(float(rating)))
    return texts, labels
