"""What the JSON bodies of the generation paths have in common before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs.json_body import parse
from headrace.server.codecs.text_inputs import kept_tokens
from headrace.server.errors import InvalidArgumentError, InvalidJsonError

if TYPE_CHECKING:
    from headrace.server.codecs.openai_sampling import SamplingBody
    from headrace.server.repository.model import GenerationSettings
    from headrace.server.tasks.prompts import Prompt

PLACEHOLDER_MODEL: Final = "dummy"
"""What huggingface_hub sends as ``model`` when it is given a URL instead."""
REQUEST_ID: Final = "x-request-id"
MAX_REQUEST_ID: Final = 128


def json_object(content_type: str, data: bytes) -> dict[str, Any]:
    """Parse a body.

    Raises:
        InvalidArgumentError: the content type is there and is not JSON's.
        InvalidJsonError: the body is not a JSON object.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise InvalidArgumentError("Unsupported Media Type: Only 'application/json' is allowed")
    return as_object(parse(data))


def as_object(value: Any) -> dict[str, Any]:
    """Return the parsed body.

    Raises:
        InvalidJsonError: it is not a JSON object.
    """
    if not isinstance(value, dict):
        raise InvalidJsonError(f"the body is JSON but not an object: it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def default_model(name: str | None) -> str:
    """Return the name to resolve: "" (the default model) where a client says that it has none."""
    return "" if name is None or name == PLACEHOLDER_MODEL else name


def request_id(given: str | None, headers: Mapping[str, str]) -> str | None:
    """Return the caller's name for its request: the body's, else the header's; None without a usable one."""
    name = given or headers.get(REQUEST_ID)
    return name if name and len(name) <= MAX_REQUEST_ID else None


def truncation(sampling: SamplingBody, settings: GenerationSettings, max_tokens: int | None) -> int | None:
    """Return how many tokens of a prompt are kept; None keeps all, -1 in the request as many as fit.

    Raises:
        InvalidArgumentError: the number is out of range.
    """
    if sampling.truncate_prompt_tokens == -1:
        return fitting(settings, max_tokens)
    return kept_tokens(sampling.truncate_prompt_tokens, settings.max_tokens)


def fitting(settings: GenerationSettings, max_tokens: int | None) -> int:
    """Return how long a prompt may be that leaves room for ``max_tokens``, at least one."""
    return max(1, settings.max_tokens - max(1, max_tokens or 0))


def truncated(
    prompt: Prompt, sampling: SamplingBody, settings: GenerationSettings, max_tokens: int | None
) -> Prompt:
    """Return a prompt that is cut as the request wants it."""
    keep = truncation(sampling, settings, max_tokens)
    return (
        prompt
        if keep is None
        else replace(prompt, truncate=keep, keep_end=sampling.truncation_side != "right")
    )
