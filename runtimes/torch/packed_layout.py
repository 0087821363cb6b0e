"""How the texts of a padded batch lie one after another, without the padding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Group:
    """Texts of one length: ``rows`` of ``length`` tokens each, from the packed token ``first`` on."""

    first: int
    rows: int
    length: int

    @property
    def last(self) -> int:
        """The packed token behind them."""
        return self.first + self.rows * self.length


class Unpadded:
    """A batch whose rows are all as long as it is wide: it stays as it is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The packed tokens of a batch: its texts in order of length, so that equal lengths are neighbours.

    Attributes:
        shape: rows and width of the padded batch.
        groups: the texts by length.
        places: where each token is in the flattened padded batch, int64 [tokens].
        positions: of each token in its own text, int64 [tokens].
        texts: which packed text each token belongs to, int64 [tokens].
        bounds: the first token of each packed text and, at the end, how many tokens there are, int32
            [texts + 1].
    """

    shape: tuple[int, int]
    groups: tuple[Group, ...]
    places: torch.Tensor
    positions: torch.Tensor
    texts: torch.Tensor
    bounds: torch.Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.groups[-1].length

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Take [rows, width] to [1, tokens]."""
        return padded.reshape(1, -1)[:, self.places]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Take [1, tokens, dim] back to [rows, width, dim]; padding becomes 0."""
        padded = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[2])
        return padded.index_copy_(0, self.places, packed[0]).view(*self.shape, -1)


def lay_out(lengths: NDArray[np.int64], width: int, device: torch.device) -> Layout:
    """Lay out texts of these ``lengths``, each at least 1, of a batch that is padded on the right."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    bounds = np.concatenate(([0], np.cumsum(ordered)))
    texts = np.repeat(np.arange(len(ordered)), ordered)
    positions = np.arange(bounds[-1]) - bounds[:-1][texts]
    places = order[texts] * width + positions
    index = torch.from_numpy(np.stack((places, positions, texts))).to(device)
    starts = np.flatnonzero(np.diff(ordered, prepend=0))
    groups = tuple(
        Group(int(bounds[start]), int(stop - start), int(ordered[start]))
        for start, stop in pairwise((*starts, len(ordered)))
    )
    return Layout(
        shape=(len(lengths), width),
        groups=groups,
        places=index[0],
        positions=index[1],
        texts=index[2],
        bounds=torch.from_numpy(bounds.astype(np.int32)).to(device),
    )
