"""The sampling fields that chat, completions and responses share: vLLM's, which include OpenAI's."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.runtimes.generation.parameters import Grammar


class SamplingBody(msgspec.Struct):
    """Fields that say how to choose tokens and when to stop; None is absent.

    What changes nothing here (``spaces_between_special_tokens``, ``user``, ``metadata``, …) is not listed. A
    ``logit_bias`` that is a list is what Text Generation Inference takes, and does nothing with.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | list[float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    seed: int | float | None = None
    n: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    watermarking: bool | None = None
    priority: int | float | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What the rest of a body asks of the engine.

    Attributes:
        max_tokens: new tokens at most; None is as many as fit.
        max_tokens_field: under which name the request gave it.
        may_be_empty: whether ``max_tokens`` may be 0, because the prompt itself is of interest.
        logprobs: alternatives with each token; None for no logprobs.
        logprobs_field: under which name the request gave it.
        prompt_logprobs: overrides the field of the same name (``echo`` needs them).
        grammar: what the output must match.
        best_of: samples to choose from; None is as many as are returned.
        details: describe every token even without logprobs.
    """

    max_tokens: int | None
    max_tokens_field: str = "max_tokens"
    may_be_empty: bool = False
    logprobs: int | None = None
    logprobs_field: str = "logprobs"
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    best_of: int | None = None
    details: bool = False
