"""Whether a network computes what transformers' own forward does, tried on a few tokens at load.

Models mix tokens in more ways than attention (convolutions, recurrent states, positions counted from the
start of the input), and mostly without saying so: packed sequences would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import torch

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.base import Chunk, Decoder, GenerationSpec

_LENGTHS: Final = (7, 6)
_BLOCK_TOKENS: Final = 16
SPEC: Final = GenerationSpec(
    max_tokens=max(_LENGTHS), max_sequences=2, kv_tokens=2 * _BLOCK_TOKENS, block_tokens=_BLOCK_TOKENS
)
"""What a decoder that is checked has to hold."""

_TOLERANCE: Final = MappingProxyType({4: 1e-3, 2: 0.1})
"""Largest difference of a logit, as a share of the logits' spread, by bytes of the dtype."""


def samples(vocabulary: int, device: torch.device) -> Sequence[torch.Tensor]:
    """Return token ids of two sequences, from all over the vocabulary and the same each time."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (length,), generator=generator).to(device) for length in _LENGTHS]


def expected(module: Any, sequences: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the logits of each sequence on its own, [tokens, vocabulary], as transformers computes them."""
    return [module(input_ids=tokens[None], use_cache=False).logits[0].float() for tokens in sequences]


def check(
    decoder: Decoder, dtype: torch.dtype, sequences: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]
) -> None:
    """Compute the sequences together, in two steps, and compare; ``dtype`` is what is computed in.

    Raises:
        ModelError: the logits differ.
    """
    first, second = (tokens.tolist() for tokens in sequences)
    parts = [
        decoder.step([_chunk(1, second[:-1], 0), _chunk(0, first[:4], 0)]),
        decoder.step([_chunk(0, first[4:], 4), _chunk(1, second[-1:], len(second) - 1)]),
    ]
    split = len(second) - 1
    rows = [torch.from_numpy(part) for part in parts]
    found = (
        torch.cat([rows[0][split:], rows[1][:-1]]),
        torch.cat([rows[0][:split], rows[1][-1:]]),
    )
    tolerance = _TOLERANCE[dtype.itemsize]
    for computed, wanted in zip(found, logits, strict=True):
        spread = float(wanted.max() - wanted.min())
        difference = float((computed - wanted.cpu()).abs().max())
        if not difference <= tolerance * spread:
            msg = (
                "computed beside others and in parts a sequence has other logits (off by "
                f"{difference:.3g} of {spread:.3g}): it mixes tokens by other means than causal attention, "
                "or attends in a way of its own"
            )
            raise ModelError(msg)


def _chunk(slot: int, tokens: Sequence[int], start: int) -> Chunk:
    return Chunk(slot, tokens, start, (slot,), logits=len(tokens), fresh=start == 0)
