"""Rotary position embeddings: the frequencies of each scaling, and the tables of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

KNOWN: Final = frozenset({"default", "linear", "llama3", "yarn"})
"""Scalings whose frequencies are the same for every length of the text."""


def tables(
    scaling: Mapping[str, Any], width: int, longest: int, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines of positions 0 to ``length``, each [length, width].

    ``scaling`` is ``rope_parameters`` of ``config.json`` with a ``rope_type`` of ``KNOWN``, ``width`` the
    width of a head, ``longest`` the model's ``max_position_embeddings``.
    """
    frequencies, factor = _frequencies(scaling, width, longest)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn ``states`` [tokens, heads, width] by the tables' rows [tokens, 1, width] of their positions."""
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return torch.addcmul(states * cosines, turned, sines)


def _frequencies(scaling: Mapping[str, Any], width: int, longest: int) -> tuple[torch.Tensor, float]:
    """Return the angle for each step of position, [width / 2], and what cosines and sines are scaled by."""
    base = float(scaling.get("rope_theta", 10000.0))
    plain = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return plain / float(scaling["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, scaling, longest), 1.0
    if kind == "yarn":
        return _yarn(plain, scaling, base, width, longest)
    return plain, 1.0


def _llama3(plain: torch.Tensor, scaling: Mapping[str, Any], longest: int) -> torch.Tensor:
    """Slow the long waves by the factor, keep the short ones, blend those between (Llama 3.1)."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    trained = float(scaling.get("original_max_position_embeddings") or longest)
    # Waves that fit into the trained length, the measure that low and high are given in.
    waves = trained * plain / (2 * math.pi)
    share = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    return plain * share + plain / factor * (1.0 - share)


def _yarn(
    plain: torch.Tensor, scaling: Mapping[str, Any], base: float, width: int, longest: int
) -> tuple[torch.Tensor, float]:
    """Interpolate the slow dimensions, keep the fast ones, ramp between (Peng et al., 2023)."""
    trained = float(scaling.get("original_max_position_embeddings") or longest)
    factor = float(scaling.get("factor") or longest / trained)

    def dimension(turns: float) -> float:
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = dimension(float(scaling.get("beta_fast") or 32))
    last = dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - first) / (last - first)).clamp(0.0, 1.0)
    frequencies = plain / factor * ramp + plain * (1.0 - ramp)
    return frequencies, _yarn_factor(scaling, factor)


def _yarn_factor(scaling: Mapping[str, Any], factor: float) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if scale and all_dims:
        return magnitude(float(scale)) / magnitude(float(all_dims))
    return magnitude(1.0)
