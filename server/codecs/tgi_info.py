"""How Text Generation Inference describes a server and its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_completions import MAX_PROMPTS

if TYPE_CHECKING:
    from headrace.server.codecs.tgi_limits import TgiLimits


def info_json(model: str, max_total_tokens: int, limits: TgiLimits, version: str) -> bytes:
    """Encode the body of ``GET /info``.

    ``max_input_tokens`` leaves room for one new token; ``max_client_batch_size`` is that of completions.
    """
    return encode(
        {
            "model_id": model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_best_of": limits.max_best_of,
            "max_stop_sequences": limits.max_stop_sequences,
            "max_input_tokens": max_total_tokens - 1,
            "max_total_tokens": max_total_tokens,
            "validation_workers": limits.validation_workers,
            "max_client_batch_size": MAX_PROMPTS,
            "router": "text-generation-router",
            "version": version,
            "sha": None,
            "docker_label": None,
        }
    )
