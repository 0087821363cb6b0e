"""Errors of Text Generation Inference: ``{"error", "error_type"}``, over REST and in streams.

Source: TGI 3.3. Its JSON extractor answers plain text; here those errors have the family's shape too, with
the same statuses. What TGI does not know (several models, deadlines) has its usual HTTP status.
"""

from __future__ import annotations

from typing import Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.sse import event
from headrace.server.errors import (
    ChatTemplateError,
    DeadlineExceededError,
    ExecutionFailedError,
    HeadraceError,
    InputEmptyError,
    InvalidArgumentError,
    InvalidJsonError,
    ModelNotFoundError,
    ModelNotReadyError,
    PayloadTooLargeError,
    QueueFullError,
    QueueTimeoutError,
    ServerDrainingError,
    TaskNotSupportedError,
    UnauthenticatedError,
    UnsupportedError,
    WorkerCrashedError,
    status_of,
)

_VALIDATION: Final = "Input validation error: "
_GENERATION: Final = "Request failed during generation: "
_KINDS: Final = (
    (InvalidJsonError, 422, "validation", "Failed to deserialize the JSON body into the target type: "),
    (ChatTemplateError, 422, "template_error", "Template error: "),
    (InvalidArgumentError, 422, "validation", _VALIDATION),
    (TaskNotSupportedError, 422, "validation", _VALIDATION),
    (UnsupportedError, 422, "validation", _VALIDATION),
    (UnauthenticatedError, 401, "unauthorized", ""),
    (ModelNotFoundError, 404, "model_not_found", ""),
    (PayloadTooLargeError, 413, "payload_too_large", ""),
    (ExecutionFailedError, 424, "generation", _GENERATION),
    (DeadlineExceededError, 504, "timeout", ""),
    (ModelNotReadyError, 503, "unavailable", ""),
    (QueueTimeoutError, 503, "unavailable", ""),
    (WorkerCrashedError, 503, "unavailable", ""),
    (ServerDrainingError, 503, "unavailable", ""),
)
MEDIA_TYPE: Final = "media_type"
"""The ``error_type`` in the metadata of an error that is answered with 415."""


def error_json(error: HeadraceError) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error."""
    status, kind, message = _described(error)
    return status, encode({"error": message, "error_type": kind})


def error_event(error: HeadraceError) -> bytes:
    """Return the end of a stream that failed: one event, nothing behind it."""
    _, kind, message = _described(error)
    return event({"error": message, "error_type": kind})


def incomplete_event() -> bytes:
    """Return the end of a stream whose request was ended by somebody else."""
    return event({"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"})


def _described(error: HeadraceError) -> tuple[int, str, str]:
    """Return status, ``error_type`` and text."""
    if error.metadata.get("error_type") == MEDIA_TYPE:
        return 415, MEDIA_TYPE, error.message
    if isinstance(error, QueueFullError):
        return 429, "overloaded", "Model is overloaded"
    if isinstance(error, InputEmptyError) and error.metadata.get("field") == "prompt":
        return 422, "validation", f"{_VALIDATION}`inputs` cannot be empty"
    if isinstance(error, InvalidJsonError) and "offset" in error.metadata:
        return 400, "validation", f"Failed to parse the request body as JSON: {error.message}"
    for known, status, kind, prefix in _KINDS:
        if isinstance(error, known):
            return status, kind, prefix + error.message
    return status_of(error).http, "incomplete_generation", error.message
