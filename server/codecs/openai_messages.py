"""One sample's text as the chat API shows it: content and tool calls, whole or in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from headrace.server.codecs.openai_tools import Tools
    from headrace.server.tasks.generation import FinishReason
    from headrace.server.tasks.tool_formats import Parsed


class MessageReader:
    """Reads the text of one sample.

    Args:
        tools: how tools take part in the request.
    """

    def __init__(self, tools: Tools) -> None:
        self._named = tools.choice.mode == "named"
        self._parser = tools.plan.parser()

    def feed(self, text: str, *, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """Take more text; return new content and, for each piece of a call, a ``tool_calls`` delta."""
        parser = self._parser
        if parser is None:
            return text, []
        parsed = parser.feed(text)
        content, pieces = parsed.content, _pieces(parsed)
        if last:
            parsed = parser.finish()
            content, pieces = content + parsed.content, pieces + _pieces(parsed)
        return content, pieces

    def finish_reason(self, finish: FinishReason) -> str:
        """Return why a choice ended; a call by the caller's own choice of function is no reason."""
        called = self._parser is not None and self._parser.calls > 0
        return "tool_calls" if finish == "stop" and called and not self._named else finish


def _pieces(parsed: Parsed) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for call in parsed.calls:
        if call.name:
            pieces.append(
                {
                    "index": call.index,
                    "id": f"call_{uuid4().hex[:24]}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": ""},
                }
            )
        if call.arguments:
            pieces.append({"index": call.index, "function": {"arguments": call.arguments}})
    return pieces


def message(reader: MessageReader, text: str) -> dict[str, Any]:
    """Return the whole message of a sample's text; ``content`` is null beside calls that stand alone."""
    content, pieces = reader.feed(text, last=True)
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if "id" in piece:
            calls[piece["index"]] = {
                "id": piece["id"],
                "type": "function",
                "function": {"name": piece["function"]["name"], "arguments": ""},
            }
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    found: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if calls:
        found["tool_calls"] = list(calls.values())
    found["reasoning"] = None
    return found
