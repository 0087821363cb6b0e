"""The objects of the Responses API: the response itself, and the items of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from headrace.server.codecs.json_body import encode_given

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.codecs.openai_identity import Identity
    from headrace.server.codecs.openai_responses import ResponsesBody

REPEATED: Final = ("metadata", "reasoning", "text", "tool_choice", "tools")
"""Members of a response that a request may nest as it likes."""


def new_response(identity: Identity, body: ResponsesBody, sampling: Sampling) -> dict[str, Any]:
    """Return a response that has just begun, with all that the request settled.

    Args:
        identity: of the answer.
        body: the request.
        sampling: what the engine was asked for, the model's defaults included.

    Raises:
        InvalidArgumentError: a field that the response repeats has more levels than can be written.
    """
    form = {"type": "text"}
    if body.text is not None and body.text.format is not None:
        given = body.text.format
        form = {"type": given.type}
        if given.type == "json_schema":
            form |= {"name": given.name or "", "schema": given.schema, "strict": True}  # type: ignore[dict-item]
    response = {
        "id": identity.id,
        "object": "response",
        "created_at": identity.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": identity.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": form},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }
    for field in REPEATED:
        encode_given({"response": {field: response[field]}}, field)  # as deep as an event has it
    return response


def usage(input_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Return a response's ``usage``."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }


def message_item() -> dict[str, Any]:
    """Return a message that has just begun."""
    return {
        "type": "message",
        "id": f"msg_{uuid4().hex}",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a message's content."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(call_id: str, name: str) -> dict[str, Any]:
    """Return a function call that has just begun."""
    return {
        "type": "function_call",
        "id": f"fc_{uuid4().hex}",
        "call_id": call_id,
        "name": name,
        "arguments": "",
        "status": "in_progress",
    }
