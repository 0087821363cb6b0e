"""What a decoder is made of: a network that computes packed tokens, and the attention that it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one layer keeps of each token: ``heads`` keys and values of these widths."""

    heads: int
    key_width: int
    value_width: int


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How a layer attends, beyond causally.

    Attributes:
        scale: multiplies the scores.
        window: how many of the last tokens, its own included, a token sees; 0 sees all.
        softcap: scores become ``softcap · tanh(score / softcap)``; 0 leaves them.
        sinks: a score for each query head that takes part in the softmax and has no value, [heads].
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether torch's scaled dot product attention computes it."""
        return not self.softcap and self.sinks is None


class Attention(Protocol):
    """The attention of one step: knows the sequences of the packed tokens and their KV cache."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """Keep the new keys and values, and attend each token to its own sequence up to itself.

        ``query`` is [tokens, query heads, key width], ``key`` and ``value`` are [tokens, heads, width]; the
        result is [tokens, query heads * value width]. Query head ``h`` uses KV head
        ``h // (query heads / heads)``.
        """


class Network(Protocol):
    """The layers of a model. Everything but attention treats each token on its own."""

    @property
    def shapes(self) -> Sequence[KvShape]:
        """What each layer keeps of a token; ``Attention`` is called with an index into this."""

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values."""

    @property
    def capturable(self) -> bool:
        """Whether the same kernels run for every step of so many tokens, as a CUDA graph needs it."""

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Compute ``tokens`` [tokens] at ``positions`` [tokens]; int64.

        Returns the logits of the tokens at the indices ``rows``, [rows, vocabulary_size].
        """
