"""Errors of the KServe REST paths: an object with the one member that Triton's clients read."""

from __future__ import annotations

from typing import Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.sse import event
from headrace.server.errors import HeadraceError, UnsupportedError, status_of

DECOUPLED: Final = "doesn't support models with decoupled transaction policy"


def error_json(error: HeadraceError) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error."""
    return status_of(error).http, encode({"error": error.message})


def error_event(error: HeadraceError) -> bytes:
    """Return the end of a stream that failed."""
    return event({"error": error.message})


def decoupled_error(asked: str, model: str) -> UnsupportedError:
    """Return what refuses to ask once what may answer many times; ``asked`` names the way, Triton's words."""
    return UnsupportedError(f"{asked} {DECOUPLED}", model=model)
