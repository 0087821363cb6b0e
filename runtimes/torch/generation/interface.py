"""The attention function that transformers' models call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch.generation.network import Attention, Form
from headrace.runtimes.torch.generation.visible import Visible, describe

NAME: Final = "headrace"
"""``attn_implementation`` of models that call :func:`attend`; also the keyword that brings it the step."""

_IRRELEVANT: Final = frozenset(
    {
        "sliding_window",
        "position_ids",
        "use_cache",
        "output_attentions",
        "logits_to_keep",
        "return_dict",
        "deterministic",
    }
)
"""Keywords that change nothing here. A sliding window is in the mask, which transformers' own attention goes
by too; positions are in queries and keys already; ``deterministic`` is about gradients."""


def register(name: str, attention: Callable[..., Any]) -> None:
    """Make a function known to transformers as ``name``; a second time changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, describe)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    headrace: Attention | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend the packed tokens of a step, [1, heads, tokens, width]; the result is [1, tokens, heads, width].

    Raises:
        ModelError: the model asks for a kind of attention that is not computed here.
    """
    if headrace is None:
        msg = "it does not hand its keywords on to its attention"
        raise ModelError(msg)
    refuse_unknown(others, dropout)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    visible = Visible(known=causal) if attention_mask is None else attention_mask
    if not isinstance(visible, Visible) or not visible.known or not visible.causal:
        msg = "its attention mask is neither causal nor a sliding window"
        raise ModelError(msg)
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        msg = "its attention does not say which layer it is of"
        raise ModelError(msg)
    form = Form(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=visible.window,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    result = headrace(layer, rows[0], rows[1], rows[2], form)
    return result.view(1, result.shape[0], query.shape[1], -1), None


def replace_attention(module: Any, name: str) -> None:
    """Have the layers of ``module`` call the attention function that is registered as ``name``.

    Raises:
        ModelError: they do not take attention from outside.
    """
    if not module._supports_attention_backend or module._is_stateful:  # noqa: SLF001
        msg = "its layers do not take attention from outside"
        raise ModelError(msg)
    module.set_attn_implementation(name)
    if module.config.get_text_config(decoder=True)._attn_implementation != name:  # noqa: SLF001
        msg = "its attention cannot be replaced"
        raise ModelError(msg)


def refuse_unknown(keywords: Mapping[str, Any], dropout: float) -> None:
    """Refuse keywords of an attention function that ask for something which is not computed.

    Raises:
        ModelError: one of them does, or there is dropout.
    """
    unknown = [name for name, given in keywords.items() if name not in _IRRELEVANT and not _absent(given)]
    if unknown or dropout:
        msg = f"its attention uses {', '.join(unknown) or 'dropout'}"
        raise ModelError(msg)


def _absent(given: Any) -> bool:
    return given is None or given is False
