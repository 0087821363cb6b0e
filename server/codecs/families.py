"""The one table of what wire families do differently with numbers: their defaults and their own ranges.

A range stands here only where a family takes less than the generation task does, or says it in words that its
clients know. Ranges that hold for every family are the task's (``tasks/generation_checks.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from headrace.server.errors import InvalidArgumentError

_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of numbers, closed unless it says otherwise.

    Attributes:
        text: what a refusal says; ``{field}`` and ``{value}`` are put in.
        low: smallest number.
        high: largest number.
        low_open: ``low`` itself is refused.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether ``value`` is in the interval; NaN is in none."""
        return self.low <= value <= self.high and not (self.low_open and value == self.low)


@dataclass(frozen=True, slots=True)
class Family:
    """One wire family.

    Attributes:
        ranges: field → the values that the family takes.
        defaults: field → what a request that does not say gets, before the model's own defaults.
    """

    ranges: Mapping[str, Range]
    defaults: Mapping[str, float] = field(default_factory=lambda: _NOTHING)

    def check(self, field: str, value: float) -> None:
        """Refuse a number that the family does not take; a field without a range takes all.

        Raises:
            InvalidArgumentError: out of range, with the family's own text.
        """
        known = self.ranges.get(field)
        if known is not None and value not in known:
            raise InvalidArgumentError(
                known.text.format(field=field, value=value), field=field, value=str(value)
            )

    def default(self, field: str) -> float | None:
        """Return the family's default; None leaves it to the model."""
        return self.defaults.get(field)


_AT_LEAST_ONE: Final = Range("{field} must be at least 1, got {value}.", low=1)
_OPENAI: Final = MappingProxyType(
    dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _AT_LEAST_ONE)
)
_POSITIVE: Final = Range("`{field}` must be strictly positive", low=0, low_open=True)
# TGI's own interval is open on both sides; 1 is taken as "off", for that is what its clients mean by it.
_SHARE: Final = Range("`{field}` must be > 0.0 and < 1.0", low=0, high=1, low_open=True)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "openai": Family(_OPENAI),
        "vllm": Family(_OPENAI, {"max_tokens": 16}),
        "tgi": Family(
            {
                "temperature": _POSITIVE,
                "repetition_penalty": _POSITIVE,
                "frequency_penalty": Range("`{field}` must be >= -2.0 and <= 2.0", low=-2, high=2),
                "top_p": _SHARE,
                "typical_p": _SHARE,
                "top_k": _POSITIVE,
                "max_new_tokens": _POSITIVE,
            }
        ),
        "triton": Family(_OPENAI, {"max_tokens": 16}),
        "oicm": Family(
            {**_OPENAI, "temperature": Range("temperature must be in [0, 2], got {value}.", low=0, high=2)},
            {"temperature": 0.7, "top_p": 0.9},
        ),
    }
)
"""Family → its numbers: OpenAI's routes, vLLM's own, Text Generation Inference, Triton's generate, OICM."""
