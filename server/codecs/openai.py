"""Answers and errors of the OpenAI API: models, and errors of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.tei import error_kind
from headrace.server.codecs.vllm_pooling_answers import message_of
from headrace.server.errors import (
    HeadraceError,
    InputTooLongError,
    InvalidArgumentError,
    ModelNotFoundError,
    QueueFullError,
    TaskNotSupportedError,
    UnauthenticatedError,
    status_of,
)

if TYPE_CHECKING:
    from headrace.server.repository.model import Model


def model_card(identifier: str, model: Model, created: int) -> dict[str, Any]:
    """Describe a model as vLLM does, which includes OpenAI's four fields.

    ``max_model_len`` is the longest input in tokens (of a model that generates: and its output), null
    for a model that takes no text.
    """
    text = model.generation or model.text
    permission = {
        "id": f"modelperm-{identifier}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": identifier,
        "object": "model",
        "created": created,
        "owned_by": "headrace",
        "root": model.name,
        "parent": None,
        "max_model_len": None if text is None else text.max_tokens,
        "permission": [permission],
    }


def error_json(error: HeadraceError, *, embeddings: bool) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error.

    Args:
        error: what happened.
        embeddings: repeat message, code (the status) and type at the top level, where clients of Text
            Embeddings Inference look for them; OpenAI's clients read ``error``.
    """
    status, kind, code = _classified(error)
    message = message_of(error, error.message)
    field = error.metadata.get("field")
    param = "input" if field == "inputs" else field
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if embeddings:
        known = error_kind(error)
        body |= {"message": message, "code": status, "type": known, "error_type": known}
    return status, encode(body)


def _classified(error: HeadraceError) -> tuple[int, str, str | None]:
    """Return status, type and code."""
    for known, status, kind, code in _CLASSES:
        if isinstance(error, known):
            return status, kind, code
    return status_of(error).http, "server_error", None


_INVALID: Final = "invalid_request_error"
_CLASSES: Final = (
    (InputTooLongError, 400, _INVALID, "context_length_exceeded"),
    (InvalidArgumentError, 400, _INVALID, None),
    (UnauthenticatedError, 401, _INVALID, "invalid_api_key"),
    (ModelNotFoundError, 404, _INVALID, "model_not_found"),
    (TaskNotSupportedError, 400, _INVALID, "task_not_supported"),
    (QueueFullError, 429, "rate_limit_error", "rate_limit_exceeded"),
)
