"""Server-sent events: how one JSON object goes over the wire. Source: the HTML standard, section 9.2."""

from __future__ import annotations

from typing import Any, Final

from headrace.server.codecs.json_body import encode

DONE: Final = b"data: [DONE]\n\n"
"""The last event of every stream of the OpenAI API, but for the Responses API."""


def event(data: Any, name: str = "") -> bytes:
    """Encode one event; JSON text has no line breaks, so it is one line of data."""
    line = b"data: " + encode(data) + b"\n\n"
    return b"event: " + name.encode() + b"\n" + line if name else line
