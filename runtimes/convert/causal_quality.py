"""How far one decoder is from another: perplexity and most likely tokens on a fixed sample of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

SAMPLE: Final = Path(__file__).with_name("quality_sample.txt")
WINDOW: Final = 512
"""Tokens that a text is read in; none sees what is before its window."""
MOST_TOKENS: Final = 1024

Logits = Callable[[Sequence[int]], npt.NDArray[np.float32]]
"""Token ids → logits [len(ids), vocabulary]."""


class Limits(NamedTuple):
    """What a precision must keep to: the largest perplexity ratio, the smallest agreement."""

    perplexity_ratio: float
    agreement: float


LIMITS: Final = MappingProxyType(
    {"fp32": Limits(1.001, 0.99), "int8": Limits(1.05, 0.9), "int4": Limits(1.05, 0.9)}
)


@dataclass(frozen=True)
class Quality:
    """What was measured.

    Attributes:
        tokens: positions compared.
        reference_perplexity, perplexity: of the reference and of the other.
        agreement: share of the positions where both have the same most likely token.
        logprob_difference: mean absolute difference of the text's own tokens' natural-log probabilities.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    agreement: float
    logprob_difference: float

    @property
    def ratio(self) -> float:
        """Perplexity divided by the reference's."""
        return self.perplexity / self.reference_perplexity

    def numbers(self) -> dict[str, float | int]:
        """For files and people, rounded."""
        return {
            "tokens": self.tokens,
            "reference_perplexity": round(self.reference_perplexity, 4),
            "perplexity": round(self.perplexity, 4),
            "perplexity_ratio": round(self.ratio, 5),
            "greedy_agreement": round(self.agreement, 4),
            "mean_logprob_difference": round(self.logprob_difference, 5),
        }

    def text(self) -> str:
        """One sentence."""
        return (
            f"perplexity {self.perplexity:.2f} instead of {self.reference_perplexity:.2f} "
            f"({self.ratio - 1:+.1%}), the same most likely token at {self.agreement:.1%} of {self.tokens} "
            "positions"
        )


def passes(found: Quality, precision: str) -> bool:
    """Whether ``found`` keeps to the limits of ``precision``; a NaN never does."""
    limits = LIMITS[precision]
    return found.ratio <= limits.perplexity_ratio and found.agreement >= limits.agreement


def sample(folder: Path) -> list[list[int]]:
    """The sample in the ids of ``folder``'s tokenizer, in windows that the model takes."""
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SAMPLE.read_text(encoding="utf-8")).ids
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = min(WINDOW, int(config.get("max_position_embeddings") or WINDOW))
    return [ids[start : start + width] for start in range(0, min(len(ids), MOST_TOKENS), width)]


def compare(reference: Logits, other: Logits, windows: Sequence[Sequence[int]]) -> Quality:
    """Run both on all windows."""
    agree, total = 0, 0
    own: list[npt.NDArray[np.float64]] = []
    for window in windows:
        expected, found = reference(window)[:-1], other(window)[:-1]
        agree += int((expected.argmax(-1) == found.argmax(-1)).sum())
        total += len(expected)
        own.append(np.stack([_logprobs(expected, window[1:]), _logprobs(found, window[1:])]))
    first, second = np.concatenate(own, axis=1)
    return Quality(
        tokens=total,
        reference_perplexity=float(np.exp(-first.mean())),
        perplexity=float(np.exp(-second.mean())),
        agreement=agree / total,
        logprob_difference=float(np.abs(first - second).mean()),
    )


def _logprobs(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """Natural-log probability of each target, [len(targets)]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    own: npt.NDArray[np.float64] = wide[np.arange(len(targets)), targets] - np.log(np.exp(wide).sum(-1))
    return own


def transformers_logits(folder: Path, windows: Sequence[Sequence[int]]) -> Logits:
    """What transformers computes for ``windows``; computed now, so that the model is not kept."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    known: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
    with torch.inference_mode():
        for window in windows:
            known[tuple(window)] = model(torch.tensor([list(window)])).logits[0].numpy()
    return lambda ids: known[tuple(ids)]
