"""JSON bodies of the KServe REST protocol: parsing, and access with the texts that Triton's clients know."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import numpy as np
import orjson

from headrace.server.errors import InvalidJsonError

MAX_DEPTH: Final = 100
_UINT64: Final = (1 << 64) - 1
# One that does not end runs to the end: else each quote in it would be tried as the beginning of another.
_TEXT: Final = rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)'
_STRING: Final = re.compile(_TEXT, re.DOTALL)
_STRING_OR_LITERAL: Final = re.compile(_TEXT + rb"|NaN|Infinity", re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(body: bytes | memoryview) -> Any:
    """Parse a JSON body; ``NaN``, ``Infinity`` and ``-Infinity`` are numbers, as Triton takes them.

    Raises:
        InvalidJsonError: not JSON in UTF-8, or nested deeper than ``MAX_DEPTH``.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = bytes(body)
        _check_depth(text)
        if b"NaN" not in text and b"Infinity" not in text:
            _fail(error)
        document = _parse_extended(text)
    else:
        _check_depth(bytes(body))
    return document


def _parse_extended(text: bytes) -> Any:
    """Parse with the slower parser that knows the literals for what is not finite.

    That one takes more than it should, so the other has to take the text first, with zeros for the literals.
    """
    try:
        orjson.loads(_STRING_OR_LITERAL.sub(_without_literal, text))
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:  # of either parser
        _fail(error)


def _without_literal(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0].startswith(b'"') else b"0".ljust(len(found[0]))


def _integer(digits: str) -> int | float:
    """Return a number as the faster parser does: beyond 64 bits it is a float."""
    value = int(digits)
    return value if -(1 << 63) <= value <= _UINT64 else float(value)


def _fail(error: json.JSONDecodeError) -> NoReturn:
    msg = f"failed to parse the request JSON buffer: {error.msg}. at {error.pos}"
    raise InvalidJsonError(msg, offset=str(error.pos)) from None


def _check_depth(text: bytes) -> None:
    """Refuse deep nesting; texts are left out, because brackets in them open nothing."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), np.uint8)
    steps = (brackets & 2).astype(np.int32) - 1  # this bit is 1 in "[" and "{", 0 in "]" and "}"
    if steps.size and steps.cumsum().max() > MAX_DEPTH:
        msg = f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})"
        raise InvalidJsonError(msg)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse an optional body: empty means an empty object.

    Raises:
        InvalidJsonError: not a JSON object.
    """
    if not body:
        return {}
    document = parse_json(body)
    if not isinstance(document, dict):
        msg = "failed to parse the request JSON buffer: attempt to access JSON non-object as object"
        raise InvalidJsonError(msg)
    return document


def member(document: Any, key: str) -> Any:
    """Return a member that must be there.

    Raises:
        InvalidJsonError: ``document`` is not an object, or has no such member.
    """
    if not isinstance(document, dict) or key not in document:
        msg = f"Unable to parse '{key}': attempt to access non-existing object member '{key}'"
        raise InvalidJsonError(msg, field=key)
    return document[key]


def string(value: Any, key: str) -> str:
    """Return ``value`` if it is a string, else raise InvalidJsonError."""
    if isinstance(value, str):
        return value
    raise wrong_type(key, "string")


def array(value: Any, key: str) -> list[Any]:
    """Return ``value`` if it is an array, else raise InvalidJsonError."""
    if isinstance(value, list):
        return value
    raise wrong_type(key, "array")


def boolean(value: Any, key: str) -> bool:
    """Return ``value`` if it is a boolean, else raise InvalidJsonError."""
    if isinstance(value, bool):
        return value
    raise wrong_type(key, "boolean")


def unsigned(value: Any, key: str, verb: str = "parse", most: int = _UINT64) -> int:
    """Return ``value`` if it is an integer of 0 to ``most``, else raise InvalidJsonError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    raise wrong_type(key, "unsigned-integer", verb)


def members(value: Any, what: str) -> dict[str, Any]:
    """Return ``value`` if it is an object, an empty one for null; ``what`` begins the message otherwise.

    Raises:
        InvalidJsonError: neither.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise InvalidJsonError(f"{what}: attempt to get members for non-object")


def wrong_type(key: str, expected: str, verb: str = "parse") -> InvalidJsonError:
    """Return the error for a value of another JSON type than ``expected``."""
    msg = f"Unable to {verb} '{key}': attempt to access JSON non-{expected} as {expected}"
    return InvalidJsonError(msg, field=key)
