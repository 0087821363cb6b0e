"""Tool definitions to what forces an answer to call them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from headrace.runtimes.generation.parameters import Grammar
from headrace.server.errors import InvalidArgumentError

DEFINITIONS: Final = ("$defs", "definitions")


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the function that an OpenAI tool definition describes.

    Raises:
        InvalidArgumentError: the definition is not a function with a name.
    """
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise InvalidArgumentError("`tools` takes entries of type 'function' only", field="tools")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidArgumentError("`tools` has a function without a name", field="tools")
    return function


def arguments_grammar(function: Mapping[str, Any]) -> Grammar:
    """Return what the arguments of a function must match, as the whole answer."""
    return Grammar("json_schema", _dump(parameters_of(function)))


def calls_grammar(functions: Sequence[Mapping[str, Any]], *, parallel: bool) -> Grammar:
    """Return what a list of calls must match: ``[{"name": …, "arguments": …}, …]``, at least one call."""
    items = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": {"$ref": f"#/$defs/{number}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, function in enumerate(functions)
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": items}}
    if not parallel:
        schema["maxItems"] = 1
    schema["$defs"] = {
        str(number): _resource(parameters_of(function), number) for number, function in enumerate(functions)
    }
    return Grammar("json_schema", _dump(schema))


def strict_grammar(functions: Sequence[Mapping[str, Any]]) -> Grammar:
    """Return what leaves the model free to call or not, in Hermes' form, but no call's arguments to chance.

    Text goes on until ``<tool_call>``; from there to ``</tool_call>`` it is one of the functions with
    arguments that match its schema (any object where the function is not strict).
    """
    calls = []
    rules = ["start: call* TEXT", r"TEXT: /(.|\n)*/", 'open[lazy]: TEXT "<tool_call>"']
    for number, function in enumerate(functions):
        begin = f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
        calls.append(f"{_quoted(begin)} arguments_{number}")
        schema = parameters_of(function) if function.get("strict") else {"type": "object"}
        rules.append(f"arguments_{number}: %json {_dump(schema)}")
    rules.append(f"call: open ({' | '.join(calls)}) {_quoted('}' + chr(10) + '</tool_call>')}")
    return Grammar("grammar", "\n".join(rules) + "\n")


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON schema of a function's arguments; any object when it has none.

    Raises:
        InvalidArgumentError: it is not a JSON schema object, or its definitions are not an object.
    """
    parameters = function.get("parameters")
    if not parameters:
        return {"type": "object"}
    if not isinstance(parameters, Mapping):
        raise InvalidArgumentError(
            f"`tools` has parameters of '{function['name']}' that are not a JSON schema", field="tools"
        )
    for key in DEFINITIONS:
        if not isinstance(parameters.get(key) or {}, Mapping):
            raise InvalidArgumentError(
                f"`tools` has parameters of '{function['name']}' whose `{key}` is not a JSON object; send "
                "schemas by their names, or leave it out",
                field="tools",
            )
    return parameters


def _resource(schema: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a schema as a resource of its own: its references lead into itself wherever it stands."""
    # drafts that it may name ignore an `$id`: draft 7 beside a `$ref`, draft 4 everywhere
    kept = {key: value for key, value in schema.items() if key != "$schema"}
    return {**kept, "$id": f"urn:headrace:tool:{number}"}


def _quoted(text: str) -> str:
    """Write a string as Lark does."""
    return json.dumps(text, ensure_ascii=False)


def _dump(schema: Any) -> str:
    try:
        return orjson.dumps(schema).decode()
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise InvalidArgumentError(f"`tools` has a schema that is not JSON: {error}", field="tools") from None
