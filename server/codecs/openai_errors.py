"""Errors of the generation and vLLM paths: OpenAI's object with vLLM's words, ``code`` is the status."""

from __future__ import annotations

from typing import Any, Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.sse import DONE, event
from headrace.server.errors import (
    DeadlineExceededError,
    HeadraceError,
    InvalidArgumentError,
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

_TYPES: Final = (
    (InvalidArgumentError, 400, "BadRequestError"),
    (TaskNotSupportedError, 400, "BadRequestError"),
    (UnauthenticatedError, 401, "AuthenticationError"),
    (ModelNotFoundError, 404, "NotFoundError"),
    (PayloadTooLargeError, 413, "PayloadTooLargeError"),
    (UnsupportedError, 501, "NotImplementedError"),
    (QueueFullError, 429, "RateLimitError"),
    (QueueTimeoutError, 503, "ServiceUnavailableError"),
    (ModelNotReadyError, 503, "ServiceUnavailableError"),
    (WorkerCrashedError, 503, "ServiceUnavailableError"),
    (ServerDrainingError, 503, "ServiceUnavailableError"),
    (DeadlineExceededError, 504, "TimeoutError"),
)


def error_object(error: HeadraceError, *, oicm: bool = False) -> dict[str, Any]:
    """Return the members of ``error``: message, type, param and code.

    Args:
        error: what happened.
        oicm: whether this is OICM's surface, where a request's own template that fails gives 422.
    """
    for kind, known_status, known_name in _TYPES:
        if isinstance(error, kind):
            status, name = known_status, known_name
            break
    else:
        status, name = status_of(error).http, "InternalServerError"
    param = error.metadata.get("field")
    if oicm and param == "chat_template" and status == 400:
        status, name = 422, "UnprocessableEntityError"
    message = error.message
    if isinstance(error, ModelNotFoundError) and "model" in error.metadata:
        param = "model"
        message = f"The model `{error.metadata['model']}` does not exist."
    return {"message": message, "type": name, "param": param, "code": status}


def error_json(error: HeadraceError, *, oicm: bool = False) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error; see :func:`error_object`."""
    found = error_object(error, oicm=oicm)
    return found["code"], encode({"error": found})


def error_event(error: HeadraceError) -> bytes:
    """Return the end of a stream that failed: the error as an event, and the usual last event."""
    return event({"error": error_object(error)}) + DONE
