"""JSON request bodies: syntax, then shape, with errors that name the wrong field and what was expected."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
import orjson

from headrace.server.errors import InvalidArgumentError, InvalidJsonError

Body = TypeVar("Body")

_PLACE: Final = re.compile(r"^(.*) - at `(?:key in )?\$(.*)`$", re.DOTALL)
_GZIP: Final = b"\x1f\x8b"
_OFFSET: Final = re.compile(r": line \d+ column \d+ \(char (\d+)\)$")


def parse(body: bytes) -> Any:
    """Parse JSON text of any shape.

    Raises:
        InvalidJsonError: the text is not JSON; ``offset`` in its metadata says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body:
            raise InvalidJsonError("the body is empty, expected JSON", offset="0") from None
        if body.startswith(_GZIP):
            raise InvalidJsonError("the body is compressed (gzip), expected plain JSON", offset="0") from None
        try:
            body.decode()
        except UnicodeDecodeError as wrong:
            raise InvalidJsonError(
                f"the body is not valid JSON: {wrong.reason} at byte {wrong.start}, expected UTF-8",
                offset=str(wrong.start),
            ) from None
        reason = _OFFSET.sub("", str(error))
        raise InvalidJsonError(
            f"the body is not valid JSON: {reason} at character {error.pos}", offset=str(error.pos)
        ) from None


def decode(body: bytes, shape: type[Body], *, strict: bool = True) -> Body:
    """Parse JSON text into a ``msgspec`` structure; fields that it does not have are ignored.

    Args:
        body: JSON text.
        shape: the structure.
        strict: take no number in quotes, no whole float for an integer, no 0 and 1 for a boolean.

    Raises:
        InvalidJsonError: the text is not JSON (``offset`` in the metadata), or a field is missing or has the
            wrong type (``field`` in the metadata).
    """
    return convert(parse(body), shape, strict=strict)


def convert(value: Any, shape: type[Body], *, strict: bool = True) -> Body:
    """Check a parsed value against a ``msgspec`` structure; see :func:`decode`."""
    try:
        return msgspec.convert(value, shape, strict=strict)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


def _explained(text: str) -> InvalidJsonError:
    place = _PLACE.match(text)
    problem, path = (place[1], place[2].lstrip(".")) if place else (text, "")
    missing = re.search(r"missing required field `(.*)`", problem)
    if missing:
        field = f"{path}.{missing[1]}".lstrip(".")
        return InvalidJsonError(f"`{field}` is missing", field=field)
    problem = problem[:1].lower() + problem[1:]
    if path:
        return InvalidJsonError(f"`{path}`: {problem}", field=path)
    return InvalidJsonError(f"the body: {problem}")


def given(value: Any) -> frozenset[str]:
    """Return the names of an object's members that have a value: null is no value. Other values have none."""
    if not isinstance(value, dict):
        return frozenset()
    return frozenset(name for name, member in value.items() if member is not None)


def encode(value: Any) -> bytes:
    """Encode as JSON; float32 arrays and scalars keep their shortest form, NaN and infinities become null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_given(value: Any, field: str) -> bytes:
    """Encode what a request has in ``field``, as :func:`encode` does.

    Raises:
        InvalidArgumentError: it has more levels than can be written.
    """
    try:
        return encode(value)
    except orjson.JSONEncodeError:
        raise InvalidArgumentError(
            f"`{field}` is nested too deeply to be written as JSON; flatten it", field=field
        ) from None
