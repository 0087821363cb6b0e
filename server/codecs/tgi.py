"""Bodies of Text Generation Inference: what a request may say, before anything is checked.

Source: TGI 3.3's OpenAPI document. null is the same as absent for every field, unknown fields are ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_requests import json_object
from headrace.server.errors import InvalidArgumentError


class Parameters(msgspec.Struct):
    """``parameters`` of a generate request; None is absent."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


class GenerateBody(msgspec.Struct):
    """Body of ``/generate``, ``/generate_stream`` and ``POST /``; ``model`` is ours, for servers of many."""

    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = None
    model: str | None = None

    @property
    def chosen(self) -> Parameters:
        """The parameters; those of a request that has none at all sample, as TGI's do."""
        return Parameters(do_sample=True) if self.parameters is None else self.parameters


def tgi_object(content_type: str, data: bytes) -> dict[str, Any]:
    """Parse a body; a missing content type is taken for JSON's.

    Raises:
        InvalidArgumentError: another content type (415 on the wire).
        InvalidJsonError: not a JSON object.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise InvalidArgumentError(
            "Expected request with `Content-Type: application/json`", error_type="media_type"
        )
    return json_object("", data)


def generate_body(value: dict[str, Any]) -> GenerateBody:
    """Read a parsed body; numbers in quotes are taken as numbers.

    Raises:
        InvalidJsonError: a field is missing or has the wrong type.
    """
    return convert(value, GenerateBody, strict=False)
