"""Constraints of the output that no grammar can be made of."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.server.codecs.openai_structured import ResponseFormat, StructureBody, StructuredOutputs, grammar
from headrace.server.errors import InvalidArgumentError


@pytest.mark.parametrize("given", [{"json": {"properties": {}}}, {"json_object": True}])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, "", False)),
        ({"disable_any_whitespace": True}, (True, "", False)),
        ({"whitespace_pattern": "[ ]?"}, (False, "[ ]?", False)),
        ({"whitespace_pattern": ""}, (True, "", False)),
        ({"disable_additional_properties": True}, (False, "", True)),
    ],
)
def test_how_json_is_written_reaches_the_grammar(
    given: dict[str, Any], fields: dict[str, Any], expected: tuple[bool, str, bool]
) -> None:
    found = grammar(StructureBody(structured_outputs=StructuredOutputs(**given, **fields)))
    assert found is not None
    assert (found.compact, found.whitespace, found.closed) == expected


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("levels", [200, 900])
def test_a_schema_of_very_many_levels_is_refused(levels: int) -> None:
    schema = nested(levels)
    bodies = (
        StructureBody(response_format=ResponseFormat("json_object", value=schema)),
        StructureBody(structured_outputs=StructuredOutputs(json=schema)),
    )
    for body in bodies:
        with pytest.raises(InvalidArgumentError, match="nested too deeply"):
            grammar(body)
    assert grammar(StructureBody(response_format=ResponseFormat("json_object", value=nested(20))))
