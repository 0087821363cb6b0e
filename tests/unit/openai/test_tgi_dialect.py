"""What Text Generation Inference takes on OpenAI's paths, over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "arguments": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
ASKED = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("choice", [
    "get_weather",
    {"function": {"name": "get_weather"}},
    {"type": "function", "function": {"name": "get_weather"}},
])  # fmt: skip
async def test_a_named_tool(api: Any, choice: Any) -> None:
    api.engine.script = lambda *_: '{"city": "Rome"}'
    answer = (await api.chat(tools=[WEATHER, CLOCK], tool_choice=choice)).json["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert json.loads(api.engine.sampling.grammar.text) == SCHEMA


async def test_arguments_are_parameters(api: Any) -> None:
    api.engine.script = lambda *_: '[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
    await api.chat(tools=[WEATHER], tool_choice="required")
    (schema,) = json.loads(api.engine.sampling.grammar.text)["$defs"].values()
    assert {**schema, **SCHEMA} == schema
    assert '"parameters"' in api.engine.prompt
    assert '"arguments"' not in api.engine.prompt
    both = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object"}, "arguments": SCHEMA},
    }
    await api.chat(tools=[both], tool_choice="f")
    assert json.loads(api.engine.sampling.grammar.text) == {"type": "object"}


@pytest.mark.parametrize("choice", ["get_nothing", {"function": {"name": "get_nothing"}}])
async def test_an_unknown_tool(api: Any, choice: Any) -> None:
    reply = await api.chat(tools=[WEATHER], tool_choice=choice)
    assert reply.status == 400
    assert reply.json["error"]["param"] == "tool_choice"


async def test_a_function_may_have_any_name_but_the_modes(api: Any) -> None:
    auto = {"type": "function", "function": {"name": "auto"}}
    await api.chat(tools=[auto], tool_choice="auto")
    assert api.engine.sampling.grammar is None


async def test_tool_prompt(api: Any) -> None:
    await api.chat(tools=[WEATHER], tool_prompt="Use these.")
    assert "user\nHi\n---\nUse these.<|im_end|>" in api.engine.prompt
    await api.chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
                   tools=[WEATHER], tool_prompt="Use these.")  # fmt: skip
    assert "user\nHi\nUse these.<|im_end|>" in api.engine.prompt
    for fields in ({"tools": [WEATHER], "tool_choice": "none"}, {}, {"tools": None}):
        await api.chat(**fields, tool_prompt="Use these.")
        assert "Use these." not in api.engine.prompt
    await api.chat(tools=[WEATHER], tool_prompt=None)
    assert "---" not in api.engine.prompt


@pytest.mark.parametrize(("form", "kind", "text"), [
    ({"type": "json_object"}, "json_object", ""),
    ({"type": "json_object", "value": SCHEMA}, "json_schema", json.dumps(SCHEMA, separators=(",", ":"))),
    ({"type": "json", "value": SCHEMA}, "json_schema", json.dumps(SCHEMA, separators=(",", ":"))),
    ({"type": "json", "value": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
    ({"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, "json_schema",
     json.dumps(SCHEMA, separators=(",", ":"))),
    ({"type": "json_schema", "value": SCHEMA}, "json_schema", json.dumps(SCHEMA, separators=(",", ":"))),
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, "json_schema",
     json.dumps(SCHEMA, separators=(",", ":"))),
    ({"type": "regex", "value": "[0-9]+"}, "regex", "[0-9]+"),
])  # fmt: skip
async def test_response_formats(api: Any, form: Any, kind: str, text: str) -> None:
    assert (await api.chat(response_format=form)).status == 200
    assert (api.engine.sampling.grammar.kind, api.engine.sampling.grammar.text) == (kind, text)
    assert (await api.complete("Say", response_format=form)).status == 200


@pytest.mark.parametrize("form", [
    {"type": "json"}, {"type": "regex"}, {"type": "regex", "value": {}}, {"type": "json", "value": 5},
    {"type": "json_schema"}, {"value": SCHEMA},
])  # fmt: skip
async def test_wrong_response_formats(api: Any, form: Any) -> None:
    reply = await api.chat(response_format=form)
    assert reply.status == 400
    assert reply.json["error"]["param"].startswith("response_format")


async def test_the_assistants_last_message_is_continued(api: Any) -> None:
    begun = [ASKED, {"role": "assistant", "content": "Well, "}]
    await api.chat(messages=begun, model="tgi")
    assert api.engine.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, "
    await api.chat(messages=[ASKED, {"role": "assistant", "content": ""}], model="tgi")
    assert api.engine.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    closed = "Well, <|im_end|>\n<|im_start|>assistant\n"
    for fields in ({}, {"model": "lm"}, {"model": "tgi", "continue_final_message": False}):
        await api.chat(messages=begun, **fields)
        assert api.engine.prompt.endswith(closed), fields
    await api.chat(messages=begun, model="tgi", add_generation_prompt=False)
    assert api.engine.prompt.endswith("Well, <|im_end|>\n")
    await api.chat(messages=[ASKED], model="tgi")
    assert api.engine.prompt.endswith("<|im_start|>assistant\n")


async def test_fields_that_do_nothing(api: Any) -> None:
    assert (await api.chat(logit_bias=[0.5], user="u")).status == 200
    assert api.engine.sampling.logit_bias == ()


async def test_suffix(api: Any) -> None:
    reply = await api.complete("Say", suffix="x")
    assert (reply.status, reply.json["error"]["param"]) == (400, "suffix")
    assert "can be achieved by preprocessing the prompt" in reply.json["error"]["message"]
