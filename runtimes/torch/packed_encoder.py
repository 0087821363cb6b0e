"""Text encoders of transformers that compute texts one after another instead of padded to one length."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch import packed_attention
from headrace.runtimes.torch.generation.interface import register, replace_attention
from headrace.runtimes.torch.module import last_line
from headrace.runtimes.torch.packed_layout import Layout, Unpadded, lay_out

_LONGEST: Final = 23
"""Tokens of the longer of the texts that a model is tried on."""
_TOLERANCE: Final = MappingProxyType({4: 1e-4, 2: 0.05})
"""Largest difference of a value, as a share of the values' spread, by bytes of the dtype."""


class PackedEncoder:
    """Computes the texts of a padded batch packed: [1, tokens] with positions that begin anew in each text.

    Everything but attention treats each token on its own, so only attention needs to know where texts end.
    """

    def __init__(self, module: Any, output: str, longest: int | None) -> None:
        """Give ``module`` this attention and check that its ``output`` stays what it is for padded texts.

        ``longest`` is the most tokens of a text. When this fails, the module is as it was.

        Raises:
            ModelError: the module cannot compute packed texts; the text says why.
        """
        self._module = module
        self._output = output
        self._padding = padding_position(module)
        accepted = inspect.signature(module.forward).parameters
        # Models that generate would keep keys and values of every batch.
        self._more: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        if "position_ids" not in accepted:
            msg = "it takes no positions"
            raise ModelError(msg)
        register(packed_attention.NAME, packed_attention.attend)
        before = module.config._attn_implementation  # noqa: SLF001
        sample = _sample(module, longest)
        try:
            with torch.inference_mode():
                expected = module(**sample, return_dict=True)[output]
                replace_attention(module, packed_attention.NAME)
                _compare(self(sample), expected, sample["attention_mask"].bool())
        except (ModelError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            module.set_attn_implementation(before)
            reason = f"{error}" if isinstance(error, ModelError) else last_line(error)
            raise ModelError(reason) from error

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute ``input_ids`` [rows, width] and what belongs to them; returns [rows, width, dim].

        ``attention_mask`` marks the tokens of each row, which come first. Values of padding are 0.
        """
        mask = tensors["attention_mask"]
        lengths = mask.sum(dim=1).cpu().numpy().astype(np.int64, copy=False)
        if lengths.min() == mask.shape[1]:
            return self._run(tensors, Unpadded())
        layout = lay_out(lengths, mask.shape[1], mask.device)
        packed = {name: layout.pack(states) for name, states in tensors.items()}
        ids = packed["input_ids"]
        positions = layout.positions[None]
        if self._padding is not None:
            positions = _counted(ids, layout.texts, layout.bounds, self._padding)
        return layout.unpack(self._run({**packed, "position_ids": positions}, layout))

    def _run(self, tensors: Mapping[str, torch.Tensor], texts: Layout | Unpadded) -> torch.Tensor:
        # The mask of ones stays: without one transformers would look for packed sequences in the positions.
        result = self._module(**tensors, headrace=texts, return_dict=True, **self._more)
        states: torch.Tensor = result[self._output]
        return states


def padding_position(module: Any) -> int | None:
    """Return the padding id that RoBERTa and its kin count positions from behind; None for other models."""
    for name, part in module.named_modules():
        if name.endswith("position_embeddings"):
            padding: int | None = getattr(part, "padding_idx", None)
            if padding is not None:
                return padding
    return None


def _counted(ids: torch.Tensor, texts: torch.Tensor, bounds: torch.Tensor, padding: int) -> torch.Tensor:
    """Return positions as RoBERTa has them: padding ids in a text do not count, and stand at ``padding``."""
    counts = ids[0] != padding
    running = counts.cumsum(0)
    starts = bounds[:-1].long()
    before = (running - counts.long())[starts]
    return ((running - before[texts]) * counts + padding)[None]


def _sample(module: Any, longest: int | None) -> dict[str, torch.Tensor]:
    """Return two padded texts, with ids from all over the vocabulary and the same each time."""
    generator = torch.Generator().manual_seed(1)
    width = min(_LONGEST, longest or _LONGEST)
    ids = torch.randint(module.config.vocab_size, (2, width), generator=generator)
    mask = (torch.arange(width) < torch.tensor([[width], [max(1, width // 4)]])).long()
    return {"input_ids": ids.to(module.device), "attention_mask": mask.to(module.device)}


def _compare(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> None:
    """Compare the values of tokens.

    Raises:
        ModelError: they differ.
    """
    if found.shape != expected.shape:
        msg = f"packed texts give {list(found.shape)} and padded ones {list(expected.shape)}"
        raise ModelError(msg)
    wanted = expected[mask].float()
    spread = float(wanted.max() - wanted.min())
    difference = float((found[mask].float() - wanted).abs().max())
    if not difference <= _TOLERANCE[expected.dtype.itemsize] * spread:
        msg = f"packed texts have other values (off by {difference:.3g} of {spread:.3g})"
        raise ModelError(msg)
