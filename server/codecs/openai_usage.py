"""How many tokens a request took, as OpenAI and vLLM report it, and who asks for it in a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.server.errors import InvalidArgumentError


class StreamOptions(msgspec.Struct):
    """The ``stream_options`` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StreamUsage(msgspec.Struct, frozen=True):
    """Which chunks carry the usage: ``each`` one, and a ``last`` one without choices."""

    last: bool
    each: bool


def stream_usage(options: StreamOptions | None, *, stream: bool) -> StreamUsage:
    """Return what a stream reports.

    Raises:
        InvalidArgumentError: options, even empty ones, for an answer that is not a stream.
    """
    if options is not None and not stream:
        raise InvalidArgumentError(
            "Stream options can only be defined when `stream=True`.", field="stream_options"
        )
    if options is None or not options.include_usage:
        return StreamUsage(last=False, each=False)
    return StreamUsage(last=True, each=bool(options.continuous_usage_stats))


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    """Return a ``usage`` object; cached tokens are left out where they are not known yet."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if cached_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return found
