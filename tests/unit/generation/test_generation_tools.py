"""Tool calls: read the same whole or in any pieces, and forced by grammars that real answers match."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.grammars import build
from headrace.runtimes.generation.parameters import Grammar
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tool_calls import (
    TOOL_PARSERS,
    ToolChoice,
    ToolPlan,
    detect_tool_parser,
    parse,
    plan_tools,
)
from headrace.server.tasks.tool_formats import Parsed
from headrace.server.tasks.tool_pythonic import parse_call

Calls = list[tuple[str, str]]
NAMES = ("f", "g")
"""Functions of the plans that are made by hand."""


def collect(deltas: list[Parsed]) -> tuple[str, Calls]:
    """Content and calls; a name must come once and first."""
    calls: list[list[str]] = []
    for delta in deltas:
        for call in delta.calls:
            if call.name:
                assert call.index == len(calls)
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    return "".join(delta.content for delta in deltas), [(name, arguments) for name, arguments in calls]


def read(plan: ToolPlan, text: str, size: int = 10**6) -> tuple[str, Calls]:
    parser = plan.parser()
    assert parser is not None
    pieces = [parser.feed(text[start : start + size]) for start in range(0, len(text), size)]
    return collect([*pieces, parser.finish()])


ODD = '{"a": "x}\\"{", "b": [1, {"c": null}], "d": "\\\\"}'
ANSWERS: list[tuple[str, str, tuple[str, Calls]]] = [
    ("hermes", "a < b and <tool_ no call", ("a < b and <tool_ no call", [])),
    ("hermes", f'So.\n\n<tool_call>\n{{"name": "f", "arguments": {ODD}}}\n</tool_call>',
     ("So.", [("f", ODD)])),
    ("hermes", '<tool_call>{"name":"f"} </tool_call>\n<tool_call>{"arguments":[1],"name":"g"}</tool_call>\nO',
     ("\nO", [("f", "{}"), ("g", "[1]")])),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', ("", [("f", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "f", "arguments": null, "x": -1.5}', ("", [("f", "{}")])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', ("", [("f", '{"a": 1')])),
    ("hermes", "<tool_call>not json</tool_call> rest", ("<tool_call>not json</tool_call> rest", [])),
    ("hermes", 'x <tool_call>\n{"n": 1}</tool_call>', ('x <tool_call>\n{"n": 1}</tool_call>', [])),
    ("hermes", '<tool_call>{"name": 5}', ('<tool_call>{"name": 5}', [])),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
     ("", [("f", '{"a": 1}'), ("g", "{}")])),
    ("mistral", 'Hm. [TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{"b": 2}',
     ("Hm.", [("f", '{"a": 1}'), ("g", '{"b": 2}')])),
    ("mistral", "no [calls] here [TOOL", ("no [calls] here [TOOL", [])),
    ("llama3_json", ' {"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {"b": 1}}',
     ("", [("f", '{"a": 1}'), ("g", '{"b": 1}')])),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ("", [("f", '{"a": 1}')])),
    ("llama3_json", '  {"answer": 5} ok', ('  {"answer": 5} ok', [])),
    ("llama3_json", "[1] says {x}", ("[1] says {x}", [])),
    ("llama3_json", '{"name": "Rome", "country": "Italy"}', ('{"name": "Rome", "country": "Italy"}', [])),
    ("llama3_json", '{"name": "f", "country": "Italy"}', ('{"name": "f", "country": "Italy"}', [])),
    ("llama3_json", '{"name": "f"}', ('{"name": "f"}', [])),
    ("llama3_json", '{"name": "h", "parameters": {"a": 1}}', ('{"name": "h", "parameters": {"a": 1}}', [])),
    ("llama3_json", '{"parameters": {"a": 1}, "name": "h"}', ('{"parameters": {"a": 1}, "name": "h"}', [])),
    ("llama3_json", '{"parameters": {"a": 1}, "name": "f"}', ("", [("f", '{"a": 1}')])),
    ("llama3_json", '<|python_tag|>{"name": "h"}', ("", [("h", "{}")])),
    ("llama3_json", '{"name": "f", "parameters"', ('{"name": "f", "parameters"', [])),
    ("json", '[{"name": "Rome"}]', ('[{"name": "Rome"}]', [])),
    ("llama3_json", "plain", ("plain", [])),
    ("json", '[{"name": "f", "arguments": {"a": 1}},\n {"name": "g", "arguments": {"b": [2]}}]',
     ("", [("f", '{"a": 1}'), ("g", '{"b": [2]}')])),
    ("pythonic", ' [f(a=1, b="x)]", c=[1, {"k": true}]), m.g()] more',
     ("", [("f", '{"a": 1, "b": "x)]", "c": [1, {"k": true}]}'), ("m.g", "{}")])),
    ("pythonic", "[see this] text", ("[see this] text", [])),
    ("pythonic", "[f(a=open('x'))] tail", ("[f(a=open('x'))] tail", [])),
    ("pythonic", "[f(1)]", ("[f(1)]", [])),
    ("pythonic", "[f", ("[f", [])),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "expected"), ANSWERS)
def test_answers_in_any_pieces(form: str, text: str, expected: tuple[str, Calls]) -> None:
    plan = ToolPlan(form, names=NAMES)
    for size in (1, 2, 3, 5, 11, 10**6):
        assert read(plan, text, size) == expected
    assert collect([parse(plan, text)]) == expected


BITS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", '{"name": "f", "arguments": {"a": 1}}', "{", "}", "[", "]",
    '"', "\\", ",", " ", "\n", "f(a=1)", "name", ":", "<|python_tag|>", "é", "[f(a='x')]",
]  # fmt: skip


@pytest.mark.parametrize("form", TOOL_PARSERS)
@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from(BITS),
            st.text(max_size=5),
        ),
        max_size=12,
    ),
    size=st.integers(1, 7),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_text_in_any_pieces_reads_the_same(form: str, pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    plan = ToolPlan(form, names=NAMES)
    content, calls = read(plan, text, size)
    assert (content, calls) == read(plan, text)
    if not calls:
        assert content == text


def test_what_follows_the_list_of_pythonic_calls_is_none_of_it() -> None:
    text = " [f(a='x')][f(a='y')]"
    for size in range(1, len(text) + 1):
        assert read(ToolPlan("pythonic"), text, size) == ("", [("f", '{"a": "x"}')])


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    arguments=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    size=st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_arguments_go_through_unchanged(arguments: dict[str, Any], size: int) -> None:
    text = json.dumps(arguments, ensure_ascii=False)
    answer = f'<tool_call>\n{{"name": "f", "arguments": {text}}}\n</tool_call>'
    assert read(ToolPlan("hermes"), answer, size) == ("", [("f", text)])


def test_only_one_call_is_reported_when_one_is_allowed() -> None:
    text = '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}'
    assert read(ToolPlan("llama3_json", limit=1, names=NAMES), text) == ("", [("f", "{}")])
    assert read(ToolPlan("pythonic", limit=1), "[f(), g()]", 3) == ("", [("f", "{}")])


def test_python_that_is_no_call_of_literals() -> None:
    for source in ("f(*x)", "f(**x)", "f(a=b)", "f(a=1)(b=2", "f", "f(a=f())", "f(a=1e999)", "(" * 5000):
        assert parse_call(source) is None
    assert parse_call("f(a=null, b=-1, c=False)") == ("f", '{"a": null, "b": -1, "c": false}')


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/place"}},
            "required": ["place"],
            "additionalProperties": False,
            "$defs": {"place": {"type": "string", "enum": ["Bern", "Rom"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def matches(grammar: Grammar, text: str) -> bool:
    """Whether a grammar engine admits ``text`` as a whole; bytes are its tokens."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, build(grammar))
    assert not matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return bool(matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens)
                and matcher.is_accepting())  # fmt: skip


def test_a_required_call_is_forced_and_read() -> None:
    plan = plan_tools([WEATHER, CLOCK], ToolChoice("required"), "hermes")
    assert plan.grammar is not None
    assert plan.grammar.kind == "json_schema"
    one = '[{"name": "weather", "arguments": {"place": "Rom"}}]'
    two = '[{"name": "clock", "arguments": {"x": 1}}, {"name": "weather", "arguments": {"place": "Bern"}}]'
    assert matches(plan.grammar, one)
    assert matches(plan.grammar, two)
    for wrong in ("[]", one.replace("Rom", "Oslo"), one.replace("weather", "other")):
        assert not matches(plan.grammar, wrong)
    assert read(plan, two, 4) == ("", [("clock", '{"x": 1}'), ("weather", '{"place": "Bern"}')])
    single = plan_tools([WEATHER, CLOCK], ToolChoice("required", parallel=False), "")
    assert single.grammar is not None
    assert matches(single.grammar, one)
    assert not matches(single.grammar, two)
    assert not plan.needs_special_tokens


TREE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size": {"type": "integer"},
        "child": {"$ref": "#"},
        "twin": {"$ref": "#/properties/size"},
        "$ref": {"type": "boolean"},
    },
    "additionalProperties": False,
}
LIST: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$id": "https://example.com/list.json",
    "$ref": "#/definitions/node",
    "definitions": {
        "node": {
            "type": "object",
            "properties": {"next": {"$ref": "#/definitions/node"}},
            "additionalProperties": False,
        }
    },
}


def function(name: str, parameters: Any, **members: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **members}}


@pytest.mark.parametrize("draft", [None, "http://json-schema.org/draft-04/schema#", LIST["$schema"]])
def test_references_of_a_required_calls_schema_lead_into_itself(draft: str | None) -> None:
    tree = TREE if draft is None else {**TREE, "$schema": draft}
    tools = [function("tree", tree), function("list", LIST), WEATHER]
    plan = plan_tools(tools, ToolChoice("required"), "")
    assert plan.grammar is not None
    for name, right, wrong in [
        ("tree", '{"size": 1, "child": {"twin": 2, "$ref": true}}', '{"child": {"twin": "x"}}'),
        ("tree", '{"child": {"child": {}}}', '{"child": [{"name": "tree", "arguments": {}}]}'),
        ("list", '{"next": {"next": {}}}', '{"next": {"size": 1}}'),
        ("weather", '{"place": "Rom"}', '{"place": "Oslo"}'),
    ]:
        assert matches(plan.grammar, f'[{{"name": "{name}", "arguments": {right}}}]')
        assert not matches(plan.grammar, f'[{{"name": "{name}", "arguments": {wrong}}}]')


def test_an_answer_that_must_match_something_else_is_no_bare_call() -> None:
    tools = [function("f", {"type": "object"}, strict=True)]
    for parser in ("llama3_json", "json", "pythonic"):
        assert plan_tools(tools, ToolChoice(), parser, constrained=True).parser() is None
    plan = plan_tools(tools, ToolChoice(), "hermes", constrained=True)
    assert plan.grammar is None
    assert read(plan, '<tool_call>{"name": "f"}</tool_call>') == ("", [("f", "{}")])


def test_a_named_call_is_its_arguments() -> None:
    plan = plan_tools([CLOCK, WEATHER], ToolChoice("named", "weather"), "hermes")
    assert plan.grammar is not None
    assert matches(plan.grammar, '{"place": "Bern"}')
    assert not matches(plan.grammar, '{"place": 5}')
    assert read(plan, '{"place": "Bern"}', 3) == ("", [("weather", '{"place": "Bern"}')])
    assert plan.parser() is not None


def test_a_strict_function_may_be_called_but_only_rightly() -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True, "name": 'we"ather'}}
    plan = plan_tools([strict, CLOCK], ToolChoice(), "hermes")
    assert plan.grammar is not None
    weather = '<tool_call>\n{"name": "we\\"ather", "arguments": {"place": "Rom"}}\n</tool_call>'
    clock = '<tool_call>\n{"name": "clock", "arguments": {"x": 1}}\n</tool_call>'
    for text in ("Plain text.", "x <tool_cal y", f"Yes. {weather}", f"{weather}\n{clock} done", clock):
        assert matches(plan.grammar, text)
    for wrong in (weather.replace("Rom", "Oslo"), clock.replace("clock", "other"), "<tool_call> {}"):
        assert not matches(plan.grammar, wrong)
    assert read(plan, f"a {weather}", 3) == ("a", [('we"ather', '{"place": "Rom"}')])
    assert plan.needs_special_tokens
    assert plan_tools([strict], ToolChoice(), "mistral").grammar is None


def test_which_tools_take_part() -> None:
    assert plan_tools(None, ToolChoice(), "hermes").parser() is None
    assert plan_tools([CLOCK], ToolChoice("none"), "hermes") == ToolPlan()
    assert plan_tools([CLOCK], ToolChoice(), "hermes").needs_special_tokens
    assert plan_tools([CLOCK], ToolChoice(), "").parser() is None
    bare = '{"name": "clock", "parameters": {}}'
    assert read(plan_tools([CLOCK], ToolChoice(), "llama3_json"), bare) == ("", [("clock", "{}")])
    assert read(plan_tools([WEATHER], ToolChoice(), "llama3_json"), bare) == (bare, [])
    assert collect([parse(ToolPlan(), "<tool_call>")]) == ("<tool_call>", [])


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ([CLOCK], ToolChoice("named", "other"), "tool_choice"),
        ([{"type": "retrieval"}], ToolChoice(), "tools"),
        ([{"type": "function", "function": {"name": ""}}], ToolChoice(), "tools"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": [1]}}],
            ToolChoice("required"),
            "tools",
        ),
        *[
            ([function("f", {"type": "object", key: value})], ToolChoice("required"), "tools")
            for key in ("$defs", "definitions")
            for value in ([1], "ab", 5, True)
        ],
    ],
)
def test_wrong_tools(tools: list[dict[str, Any]], choice: ToolChoice, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        plan_tools(tools, choice, "")
    assert failure.value.metadata["field"] == field


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"x": schema}}
    tool = function("f", schema)
    plan = plan_tools([tool], ToolChoice("required"), "")
    assert plan.grammar is not None
    with pytest.raises(InvalidInputError, match="nested values"):
        build(plan.grammar)
    for _ in range(60):
        tool["function"]["parameters"] = {"properties": {"x": tool["function"]["parameters"]}}
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        plan_tools([tool], ToolChoice("required"), "")


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ("<tool_call><function=name>", ""),
        ("{{ messages }}", ""),
    ],
)
def test_how_a_model_writes_calls_is_read_off_its_template(template: str, parser: str) -> None:
    assert detect_tool_parser(template) == parser
