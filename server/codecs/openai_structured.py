"""What a request says its output must match: ``response_format``, ``structured_outputs``, ``guided_*``.

Sources: OpenAI's ``response_format``; vLLM's ``structured_outputs`` and the older ``guided_*`` fields; the
``value`` beside a type is Text Generation Inference's form, which huggingface_hub sends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.runtimes.generation.parameters import Grammar
from headrace.server.codecs.json_body import encode, encode_given
from headrace.server.errors import InvalidArgumentError, UnsupportedError


class JsonSchema(msgspec.Struct):
    """The ``json_schema`` member of a response format; ``strict`` is implied."""

    name: str | None = None
    schema: dict[str, Any] | bool | None = None


class ResponseFormat(msgspec.Struct):
    """A chat or completion request's ``response_format``, or ``text.format`` of the Responses API.

    The latter has the members of ``json_schema`` beside ``type``.
    """

    type: str
    json_schema: JsonSchema | None = None
    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    value: dict[str, Any] | str | None = None


class StructuredOutputs(msgspec.Struct):
    """vLLM's ``structured_outputs``: exactly one kind."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


class StructureBody(msgspec.Struct):
    """All fields of a request that constrain its output; None is absent."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def grammar(body: StructureBody) -> Grammar | None:
    """Return what the output must match; None when it is free.

    Raises:
        InvalidArgumentError: more than one constraint, one without its definition, or an unknown type.
        UnsupportedError: vLLM's structural tags.
    """
    found = _from_format(body.response_format)
    outputs = body.structured_outputs
    if outputs is None:
        outputs = StructuredOutputs(
            body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar
        )
        if outputs == StructuredOutputs():
            return found
    if found is not None:
        raise InvalidArgumentError(
            "You can only use one kind of structured outputs constraint but multiple are specified: "
            "response_format and structured_outputs",
            field="structured_outputs",
        )
    return _from_outputs(outputs)


def _from_format(given: ResponseFormat | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        # huggingface_hub sends a schema so; without one any object will do.
        return Grammar("json_object") if given.value is None else json_schema(given.value)
    if given.type == "json_schema":
        return json_schema(_schema(given) if given.value is None else _named_schema(given.value))
    if given.type in {"regex", "json"} and given.value is not None:  # Text Generation Inference's types
        if given.type == "json":
            return json_schema(given.value)
        if isinstance(given.value, str):
            return Grammar("regex", given.value)
    if given.type == "structural_tag":
        raise UnsupportedError(
            "response_format type 'structural_tag' is not supported", field="response_format"
        )
    raise InvalidArgumentError(
        f"response_format type '{given.type}' is not one of 'text', 'json_object' and 'json_schema'",
        field="response_format",
        value=given.type,
    )


def _schema(given: ResponseFormat) -> dict[str, Any] | bool:
    nested = given.json_schema
    if nested is None and given.schema is None:
        raise InvalidArgumentError(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            field="response_format",
        )
    schema = given.schema if nested is None else nested.schema
    if schema is None:
        raise InvalidArgumentError(
            "When response_format type is 'json_schema', its 'schema' field must be provided.",
            field="response_format",
        )
    return schema


def _named_schema(value: dict[str, Any] | str) -> dict[str, Any] | str:
    """Return TGI's ``{"name", "schema"}`` without the name; a schema that stands alone is taken too."""
    schema = value.get("schema") if isinstance(value, dict) else None
    return schema if isinstance(schema, dict) else value


def _from_outputs(outputs: StructuredOutputs) -> Grammar:
    anything = Grammar(
        "json_object",
        compact=bool(outputs.disable_any_whitespace) or outputs.whitespace_pattern == "",
        whitespace=outputs.whitespace_pattern or "",
        closed=bool(outputs.disable_additional_properties),
    )
    found: dict[str, Grammar] = {}
    if outputs.json is not None:
        schema = json_schema(outputs.json)
        found["json"] = msgspec.structs.replace(anything, kind=schema.kind, text=schema.text)
    if outputs.regex is not None:
        found["regex"] = Grammar("regex", outputs.regex)
    if outputs.choice is not None:
        found["choice"] = Grammar("choice", encode(outputs.choice).decode())
    if outputs.grammar is not None:
        found["grammar"] = Grammar("grammar", outputs.grammar)
    if outputs.json_object:
        found["json_object"] = anything
    if outputs.structural_tag is not None:
        raise UnsupportedError("structural_tag is not supported", field="structured_outputs")
    if len(found) > 1:
        raise InvalidArgumentError(
            "You can only use one kind of structured outputs constraint but multiple are specified: "
            + ", ".join(found),
            field="structured_outputs",
        )
    if not found or outputs.choice == []:
        raise InvalidArgumentError(
            "You must use one kind of structured outputs constraint but none are specified",
            field="structured_outputs",
        )
    return next(iter(found.values()))


def json_schema(schema: str | dict[str, Any] | bool) -> Grammar:
    """Return the grammar of a JSON schema, given as an object or as its text.

    Raises:
        InvalidArgumentError: it has more levels than can be written.
    """
    text = schema if isinstance(schema, str) else encode_given(schema, "response_format").decode()
    return Grammar("json_schema", text)
