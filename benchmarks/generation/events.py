"""Reads streamed answers after the fact: pieces as they arrived become tokens with their times."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks.generation.client import Piece

_HEAD_END: Final = b"\r\n\r\n"
_LINE: Final = b"\r\n"
_PREFIX: Final = 5


def grpc_messages(pieces: Sequence[Piece]) -> Iterator[tuple[float, bytes]]:
    """Cut the payloads of DATA frames into messages; each has the time at which it was complete.

    Raises:
        ValueError: a message is compressed, or the last one is not complete.
    """
    received = bytearray()
    for moment, data in pieces:
        received += data
        while len(received) >= _PREFIX:
            compressed, size = struct.unpack_from(">BI", received)
            if compressed:
                raise ValueError("a message is compressed")
            if len(received) < _PREFIX + size:
                break
            yield moment, bytes(received[_PREFIX : _PREFIX + size])
            del received[: _PREFIX + size]
    if received:
        raise ValueError(f"{len(received)} bytes of a message that is not complete")


def sse_events(pieces: Sequence[Piece]) -> Iterator[tuple[float, bytes]]:
    """Take the chunks apart and cut their content into events; each has the time at which it was complete.

    Only ``data:`` lines are given, without that word; ``[DONE]`` and comments are left out.
    """
    received = bytearray()
    text = bytearray()
    headed = False
    for moment, data in pieces:
        received += data
        if not headed:
            end = received.find(_HEAD_END)
            if end < 0:
                continue
            del received[: end + len(_HEAD_END)]
            headed = True
        text += _unchunked(received)
        while (end := text.find(b"\n\n")) >= 0:
            for line in bytes(text[:end]).split(b"\n"):
                if line.startswith(b"data:") and (content := line[5:].strip()) != b"[DONE]":
                    yield moment, content
            del text[: end + 2]


def _unchunked(received: bytearray) -> bytes:
    """Remove the complete chunks from ``received`` and return their content."""
    content = bytearray()
    while (end := received.find(_LINE)) >= 0:
        size = int(bytes(received[:end]).split(b";")[0], 16)
        stop = end + 2 + size
        if len(received) < stop + 2:
            break
        content += received[end + 2 : stop]
        del received[: stop + 2]
    return bytes(content)


def completion_times(pieces: Sequence[Piece]) -> list[float]:
    """Return when each token of an OpenAI completion was there.

    Usage says how many there were. Where an event carries several, or none (a part of a character), they are
    spread evenly over the events that carried text or ended the choice.

    Raises:
        ValueError: the answer has an error, or no usage.
    """
    moments: list[float] = []
    tokens = -1
    for moment, event in _json_events(pieces):
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        if event.get("choices"):
            moments.append(moment)
    if tokens < 0:
        raise ValueError("the answer has no usage")
    return spread(moments, tokens)


def tgi_tokens(pieces: Sequence[Piece]) -> tuple[list[float], list[int]]:
    """Return when each token of a TGI stream was there, and its id: an event is a token.

    Raises:
        ValueError: the answer has an error, or its last event is missing.
    """
    times: list[float] = []
    ids: list[int] = []
    whole = False
    for moment, event in _json_events(pieces):
        times.append(moment)
        ids.append(event["token"]["id"])
        whole = event["generated_text"] is not None
    if not whole:
        raise ValueError("the answer has no generated text")
    return times, ids


def text_times(pieces: Sequence[Piece]) -> list[float]:
    """Return when each piece of text of Triton's generate_stream was there.

    Raises:
        ValueError: the answer has an error, or nothing.
    """
    moments = [moment for moment, event in _json_events(pieces) if "text_output" in event]
    if not moments:
        raise ValueError("the answer has no text")
    return moments


def _json_events(pieces: Sequence[Piece]) -> Iterator[tuple[float, dict[str, Any]]]:
    for moment, content in sse_events(pieces):
        event: dict[str, Any] = json.loads(content)
        if "error" in event:
            raise ValueError(f"the answer has an error: {content[:300]!r}")
        yield moment, event


def spread(moments: Sequence[float], tokens: int) -> list[float]:
    """Assign ``tokens`` tokens to the moments of events, evenly; the first and the last stay as they are."""
    if not moments or tokens <= 0:
        return []
    last = len(moments) - 1
    return [moments[round(index * last / max(1, tokens - 1))] for index in range(tokens)]
