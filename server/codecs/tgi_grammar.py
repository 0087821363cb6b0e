"""The ``grammar`` of Text Generation Inference: a JSON schema in one of three forms, or an expression."""

from __future__ import annotations

from typing import Any, Final

import orjson

from headrace.runtimes.generation.parameters import Grammar
from headrace.server.codecs.openai_structured import json_schema
from headrace.server.errors import InvalidArgumentError, InvalidJsonError

_LEVELS: Final = 64  # the engine takes no deeper schema
_NAMED: Final = frozenset({"properties", "$defs", "definitions"})
_LISTED: Final = frozenset({"anyOf", "oneOf", "prefixItems"})
_TYPES: Final = ("json", "json_object", "json_schema", "regex")


def grammar(given: dict[str, Any] | None) -> Grammar | None:
    """Return what the output must match; None when it is free.

    Raises:
        InvalidJsonError: no ``type`` or ``value``, or a type that TGI does not have.
        InvalidArgumentError: the value is no schema with ``properties``.
    """
    if given is None:
        return None
    kind, value = given.get("type"), given.get("value")
    if kind not in _TYPES:
        expected = ", ".join(f"`{name}`" for name in _TYPES)
        raise InvalidJsonError(f"`parameters.grammar.type`: expected one of {expected}", field="grammar")
    if value is None:
        raise InvalidJsonError("`parameters.grammar.value` is missing", field="grammar")
    if kind == "regex":
        if not isinstance(value, str):
            raise InvalidJsonError("`parameters.grammar.value`: expected a string", field="grammar")
        return Grammar("regex", value)
    if kind == "json_schema":
        value = value.get("schema") if isinstance(value, dict) else None
        if value is None:
            raise InvalidJsonError("`parameters.grammar.value.schema` is missing", field="grammar")
    schema = _schema(value)
    try:
        return json_schema(schema)
    except InvalidArgumentError:
        raise refused("it is nested too deeply") from None


def _schema(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise refused(str(error)) from None
    if not isinstance(value, dict):
        raise InvalidArgumentError("grammar is not supported", field="grammar")
    if "properties" not in value:
        raise refused("Grammar must have a 'properties' field")
    return _closed(value)


def _closed(schema: Any, levels: int = _LEVELS) -> Any:
    """Return a schema that means what TGI takes it for: what has properties is an object with no others."""
    if not isinstance(schema, dict):
        return schema
    if not levels:
        raise refused("it is nested too deeply")
    found = dict(schema)
    for key in _NAMED & found.keys():
        if isinstance(found[key], dict):
            found[key] = {name: _closed(part, levels - 1) for name, part in found[key].items()}
    for key in _LISTED & found.keys():
        if isinstance(found[key], list):
            found[key] = [_closed(part, levels - 1) for part in found[key]]
    if "items" in found:
        found["items"] = _closed(found["items"], levels - 1)
    if "properties" in found and "allOf" not in found:
        return {"type": "object", "additionalProperties": False} | found
    return found


def refused(reason: str) -> InvalidArgumentError:
    """Return the error of a grammar that cannot be followed."""
    return InvalidArgumentError(f"grammar is not valid: {reason}", field="grammar")
