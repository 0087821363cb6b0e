"""What Text Generation Inference's Messages API does otherwise with a conversation than OpenAI's API.

The model name ``tgi`` says that a caller means it; other names keep OpenAI's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

PLACEHOLDER: Final = "tgi"
"""What callers of TGI send as ``model``."""


def continues(model: str | None, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the last message is the beginning of the answer: the assistant's own, to a TGI."""
    last = messages[-1] if messages else {}
    return (
        model == PLACEHOLDER
        and last.get("role") == "assistant"
        and isinstance(last.get("content"), str)
        and not last.get("tool_calls")
    )


def with_tool_prompt(messages: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Return the messages with a ``tool_prompt`` at the end of the last one; what it says is the caller's."""
    last = messages[-1] if messages else {}
    match last.get("content"):
        case str(text):
            content: Any = f"{text}\n---\n{prompt}"
        case [*parts]:
            content = [*parts, {"type": "text", "text": prompt}]
        case _:
            return messages
    return [*messages[:-1], {**last, "content": content}]
