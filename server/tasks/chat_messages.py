"""Conversations as callers write them to conversations as chat templates read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson

from headrace.server.errors import InputEmptyError, InvalidArgumentError

TEXT_PARTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "text": "text",
        "input_text": "text",
        "output_text": "text",
        "refusal": "refusal",
        "thinking": "thinking",
    }
)
"""Type of a content part → the key of its text."""
REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")


def template_messages(
    messages: Sequence[Mapping[str, Any]], *, parts: bool, developer: bool
) -> list[dict[str, Any]]:
    """Return new messages for a template; the given ones stay as they are.

    Args:
        messages: with ``role``, ``content`` (a string, a list of parts or nothing) and, of the assistant,
            ``tool_calls`` whose arguments are JSON text or objects. Other keys go through.
        parts: the template wants lists of parts instead of strings; else text parts are joined by newlines.
        developer: the template knows this role; else such a message is the system's.

    Raises:
        InputEmptyError: there are no messages.
        InvalidArgumentError: a message has no role, parts that are not text, or arguments that are not JSON.
    """
    if not messages:
        raise InputEmptyError("`messages` cannot be empty", field="messages")
    return [_message(index, message, parts, developer) for index, message in enumerate(messages)]


def _message(index: int, message: Any, parts: bool, developer: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(index, "is not an object")
    result = dict(message)
    role = result.get("role")
    if not isinstance(role, str) or not role:
        raise _wrong(index, "has no `role`")
    if role == "developer" and not developer:
        result["role"] = "system"
    result["content"] = _content(index, result.get("content"), parts)
    if result.get("tool_calls"):
        result["tool_calls"] = [_tool_call(index, call) for call in _list(index, result["tool_calls"])]
    else:
        result.pop("tool_calls", None)
    reasoning = next((result[name] for name in REASONING_FIELDS if result.get(name) is not None), None)
    if reasoning is not None:  # templates read it under different names
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(index: int, content: Any, parts: bool) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if parts else content
    if not isinstance(content, Sequence):
        raise _wrong(index, "has a `content` that is neither a string nor a list of parts")
    texts = [_text(index, part) for part in content]
    return [{"type": "text", "text": text} for text in texts] if parts else "\n".join(texts)


def _text(index: int, part: Any) -> str:
    """Return the text of a content part."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind is None:
        raise _wrong(index, "has a content part that is not an object")
    if not isinstance(kind, str):
        raise _wrong(index, "has a content part whose `type` is not a string")
    if kind not in TEXT_PARTS:
        raise _wrong(index, f"has a content part of type '{kind}', the model takes text only")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise _wrong(index, f"has a content part of type '{kind}' without text")
    return text


def _tool_call(index: int, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _wrong(index, "has a tool call without a function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or b"{}")
        except orjson.JSONDecodeError as error:
            raise _wrong(index, f"has tool call arguments that are not JSON: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise _wrong(index, "has tool call arguments that are not a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def _list(index: int, value: Any) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise _wrong(index, "has `tool_calls` that are not a list")


def _wrong(index: int, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"`messages[{index}]` {what}", field="messages", index=str(index))
