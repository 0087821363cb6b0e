"""What a request may ask its output to match, checked and turned into a grammar of llguidance."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import msgspec

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.gbnf import to_lark
from headrace.runtimes.generation.parameters import Grammar

MAX_BYTES: Final = 65_536
"""UTF-8 bytes of a schema, expression, list of choices or grammar."""

MAX_DEPTH: Final = 64
"""Nesting of a schema's JSON values or an expression's groups."""

MAX_VALUES: Final = 10_000
"""JSON values in a schema."""

MAX_REPETITIONS: Final = 10_000
"""Characters and classes of an expression once its repetitions are written out."""

_REPEAT: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}|([*+?])")
_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,16}"
"""Whitespace between the tokens of JSON that need not be compact: enough to indent, not to run away."""
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords of a JSON schema that hold schemas by names of the caller's."""
_DATA: Final = frozenset({"const", "enum", "default", "examples"})
"""Keywords of a JSON schema whose values are no schemas."""


def build(grammar: Grammar) -> str:
    """Return the grammar in llguidance's own form.

    Raises:
        InvalidInputError: it is malformed, or larger or deeper than the limits of this module allow. What
            only llguidance can find is not found here.
    """
    _check_size(grammar.text)
    match grammar.kind:
        case "json_object":
            return _json_schema({"type": "object"}, grammar)
        case "json_schema":
            schema = _parse_json(grammar.text, "JSON schema")
            if schema is True:
                schema = {}
            if not isinstance(schema, dict):
                raise InvalidInputError("the JSON schema is neither an object nor true; send one of these")
            _check_schema(schema)
            if grammar.closed:
                _close(schema)
            return _json_schema(schema, grammar)
        case "regex":
            check_regex(grammar.text, "regular expression")
            return _regex(grammar.text)
        case "choice":
            return _choice(_parse_json(grammar.text, "list of choices"))
        case "grammar":
            if re.search(r"^\s*[\w.-]+\s*::=", grammar.text, re.MULTILINE):
                return _lark(to_lark(grammar.text))
            return _lark(grammar.text)


def check_regex(pattern: str, what: str) -> None:
    """Refuse expressions that are nested too deeply or too long once their repetitions are written out."""
    sizes, last, place = [0], 0, 0
    while place < len(pattern):
        character = pattern[place]
        repeat = _REPEAT.match(pattern, place)
        if repeat is not None:
            times = max(int(repeat[1][:9]), int((repeat[2] or "0")[:9])) if repeat[1] else 1
            sizes[-1] += last * max(times - 1, 0)
            last *= max(times, 1)
            place = repeat.end() - 1
        elif character == "(":
            sizes.append(0)
            last = 0
        elif character == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif character != "|":
            place = _atom_end(pattern, place)
            last = 1
            sizes[-1] += 1
        if len(sizes) > MAX_DEPTH:
            raise InvalidInputError(f"the {what} has more than {MAX_DEPTH} nested groups; flatten it")
        if sizes[-1] > MAX_REPETITIONS:
            raise InvalidInputError(
                f"the {what} stands for more than {MAX_REPETITIONS} characters once its repetitions are "
                "written out; use smaller counts, or * or +"
            )
        place += 1


def _atom_end(pattern: str, place: int) -> int:
    """Return the last index of the character, escape or class that begins at ``place``."""
    if pattern[place] == "\\":
        return place + 1
    if pattern[place] != "[":
        return place
    place += 1
    while place < len(pattern) - 1 and pattern[place] != "]":
        place += 2 if pattern[place] == "\\" else 1
    return place


def _check_size(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("the grammar has half of a surrogate pair; send valid Unicode") from None
    if size > MAX_BYTES:
        raise InvalidInputError(f"the grammar has {size} bytes; make it smaller, at most {MAX_BYTES}")
    if "\x00" in text:
        raise InvalidInputError("the grammar has a NUL character in it; remove it")


def _parse_json(text: str, what: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        # what is left in it may still not be written as UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidInputError(f"the {what} has more than {MAX_DEPTH} nested values; flatten it") from None
    except ValueError as error:
        raise InvalidInputError(f"the {what} is not valid JSON: {error}") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_schema(schema: Any) -> None:
    level, values, depth = [schema], 0, 0
    while level:
        values, depth = values + len(level), depth + 1
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"the JSON schema has more than {MAX_DEPTH} nested values; flatten it")
        if values > MAX_VALUES:
            raise InvalidInputError(f"the JSON schema has more than {MAX_VALUES} values; make it smaller")
        for value in level:
            if isinstance(value, dict):
                _check_keywords(value)
        level = [child for value in level for child in _children(value)]


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_keywords(schema: dict[str, Any]) -> None:
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise InvalidInputError(
            f"the JSON schema refers to {reference[:100]!r}; only references within the schema are followed, "
            "as in '#/$defs/name'"
        )
    patterns = schema.get("patternProperties")
    for pattern in [schema.get("pattern"), *(patterns if isinstance(patterns, dict) else ())]:
        if isinstance(pattern, str):
            check_regex(pattern, "JSON schema's pattern")


def _close(schema: Any) -> None:
    """Allow no properties but those that are listed, in a schema and those within it."""
    if isinstance(schema, list):
        for entry in schema:
            _close(entry)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in _NAMED and isinstance(value, dict):
                _close([*value.values()])
            elif key not in _DATA:
                _close(value)
        if "properties" in schema or "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)


def _json_schema(schema: dict[str, Any], grammar: Grammar) -> str:
    from llguidance import LLMatcher

    # options of llguidance are not for a schema to set
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema, ensure_ascii=False),
        overrides={"whitespace_flexible": False}
        if grammar.compact
        else {"whitespace_pattern": _whitespace(grammar.whitespace)},
    )


def _whitespace(pattern: str) -> str:
    """Return the expression of what stands between the tokens of JSON."""
    if not pattern:
        return _SPACE
    _check_size(pattern)
    check_regex(pattern, "whitespace pattern")
    return _ascii(pattern).replace(r"\f\v", "")  # \s has them, JSON does not


def _ascii(pattern: str) -> str:
    from llguidance import regex_to_lark

    # \d, \w and \s are ASCII, as in JSON schema: nobody asks for Bengali digits by \d
    return regex_to_lark(pattern, use_ascii="dws")


def _regex(pattern: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(_ascii(pattern))


def _choice(choices: Any) -> str:
    try:
        texts = msgspec.convert(choices, list[str])
    except msgspec.ValidationError:
        texts = []
    if not texts:
        raise InvalidInputError("the list of choices is not a list of at least one string; send strings")
    # one terminal: as a rule's alternatives the longer of two choices would hide its own beginning
    return _lark("start: C\nC: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\n")


def _lark(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(text)
