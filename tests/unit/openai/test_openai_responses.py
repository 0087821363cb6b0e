"""``/v1/responses`` over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.server.errors import ExecutionFailedError

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
NESTED = json.loads('{"a":' * 253 + "0" + "}" * 253)
"""Can be written, but not as a member of an event's response."""
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'


def events(reply: Any) -> list[dict[str, Any]]:
    """Return the data of the events: each is named by its type and numbered."""
    assert reply.content_type.startswith("text/event-stream")
    found = []
    blocks = reply.body.decode().split("\n\n")
    assert blocks.pop() == ""
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        assert value.pop("sequence_number") == number
        found.append(value)
    return found


def without_ids(value: Any) -> Any:
    """Return a copy whose generated ids are all the same."""
    if isinstance(value, dict):
        kept = {key: without_ids(entry) for key, entry in value.items()}
        return {**kept, **dict.fromkeys(kept.keys() & {"id", "call_id", "created_at"}, "x")}
    return [without_ids(entry) for entry in value] if isinstance(value, list) else value


def check_nesting(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replay a stream: what is added is done again before the next begins; return the finished items."""
    items: list[dict[str, Any]] = []
    item: dict[str, Any] | None = None
    part = False
    text = ""
    for entry in found[2:-1]:
        kind = entry["type"]
        if kind == "response.output_item.added":
            assert item is None
            item, text = entry["item"], ""
            assert entry["output_index"] == len(items)
            assert item["status"] == "in_progress"
            continue
        assert item is not None
        assert entry["output_index"] == len(items)
        if kind == "response.output_item.done":
            assert not part
            assert entry["item"]["id"] == item["id"]
            items.append(entry["item"])
            item = None
            continue
        assert entry["item_id"] == item["id"]
        if kind == "response.content_part.added":
            assert not part
            part = True
        elif kind in {"response.output_text.delta", "response.function_call_arguments.delta"}:
            text += entry["delta"]
        elif kind == "response.output_text.done":
            assert entry["text"] == text
        elif kind == "response.function_call_arguments.done":
            assert entry["arguments"] == text
            assert entry["name"] == item["name"]
        else:
            assert kind == "response.content_part.done"
            assert entry["part"]["text"] == text
            part = False
    assert item is None
    return items


async def test_one_answer(api: Any) -> None:
    answer = (await api.respond("Hi", instructions="Be kind.", metadata={"a": "b"}, store=True)).json
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    (item,) = answer["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hello wörld", "annotations": [], "logprobs": []}],
    }
    assert answer["usage"] == {
        "input_tokens": 39,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 52,
    }
    assert (answer["temperature"], answer["top_p"], answer["store"]) == (0.7, 0.8, False)
    assert (answer["instructions"], answer["metadata"]) == ("Be kind.", {"a": "b"})
    assert api.engine.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["Hello wörld", "", CALL, f"I look. {CALL}", CALL + CALL])
async def test_stream_is_the_answer_in_pieces(api: Any, text: str) -> None:
    api.engine.script = lambda *_: text
    whole = (await api.respond("Hi", tools=[WEATHER])).json
    found = events(await api.respond("Hi", tools=[WEATHER], stream=True))
    assert [entry["type"] for entry in found[:2]] == ["response.created", "response.in_progress"]
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[-1]["type"] == "response.completed"
    assert check_nesting(found) == found[-1]["response"]["output"]
    assert without_ids(found[-1]["response"]) == without_ids(whole)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert len(calls) == text.count("<tool_call>")
    assert all(call["arguments"] == '{"city": "Rome"}' for call in calls)


async def test_an_answer_that_is_cut_off(api: Any) -> None:
    whole = (await api.respond("Hi", max_output_tokens=4)).json
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    found = events(await api.respond("Hi", max_output_tokens=4, stream=True))
    assert found[-1]["type"] == "response.incomplete"
    assert check_nesting(found)[0]["status"] == "incomplete"


async def test_items(api: Any) -> None:
    await api.respond([
        {"role": "user", "content": [{"type": "input_text", "text": "What?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ])  # fmt: skip
    assert api.engine.prompt == (
        "<|im_start|>user\nWhat?<|im_end|>\n"
        '<|im_start|>assistant\nWell{"name": "f", "arguments": {"x": 1}}<|im_end|>\n'
        "<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_logprobs(api: Any) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    whole = (await api.respond("Hi", **fields)).json["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in whole[:2]] == ["H", "e"]
    found = events(await api.respond("Hi", stream=True, **fields))
    pieces = [entry["logprobs"] for entry in found if entry["type"] == "response.output_text.delta"]
    assert [entry for piece in pieces for entry in piece] == whole


async def test_formats_and_forced_tools(api: Any) -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    answer = (await api.respond("Hi", text={"format": form})).json
    assert json.loads(api.engine.sampling.grammar.text) == schema
    assert answer["text"] == {"format": form}
    await api.respond("Hi", text={"format": {"type": "json_object"}})
    assert api.engine.sampling.grammar.kind == "json_object"
    api.engine.script = lambda *_: '{"city": "Rome"}'
    choice = {"type": "function", "name": "get_weather"}
    (call,) = (await api.respond("Hi", tools=[WEATHER], tool_choice=choice)).json["output"]
    assert (call["type"], call["name"], call["arguments"]) == (
        "function_call",
        "get_weather",
        '{"city": "Rome"}',
    )
    assert call["call_id"].startswith("call_")


async def test_a_format_and_a_strict_function_that_need_not_be_called(api: Any) -> None:
    """The answer matches the format here and in chats."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema}
    await api.respond("Hi", tools=[WEATHER], text={"format": form})
    mine = api.engine.sampling.grammar
    function = {key: value for key, value in WEATHER.items() if key != "type"}
    nested = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    await api.chat(tools=[{"type": "function", "function": function}], response_format=nested)
    assert mine == api.engine.sampling.grammar
    assert json.loads(mine.text) == schema


async def test_the_deepest_metadata_that_can_be_repeated(api: Any) -> None:
    deep = NESTED
    while (reply := await api.respond("Hi", metadata=deep)).status == 400:
        assert api.engine.tickets == []
        deep = deep["a"]
    assert reply.json["metadata"] == deep
    assert events(await api.respond("Hi", metadata=deep, stream=True))[-1]["response"]["metadata"] == deep


async def test_parameters(api: Any) -> None:
    await api.respond(
        "Hi", temperature=0.5, top_p=0.9, top_k=3, seed=1, stop="x", n=4, tools=[], tool_choice="auto"
    )
    sampling = api.engine.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 3, 1)
    assert sampling.n == 1
    long = await api.respond("x" * 600, truncation="auto", max_output_tokens=12)
    assert long.json["usage"]["input_tokens"] == 500


@pytest.mark.parametrize(("fields", "status", "param"), [
    ({"previous_response_id": "resp_1"}, 404, "previous_response_id"),
    ({"conversation": "conv_1"}, 404, "conversation"),
    ({"background": True}, 501, "background"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools"),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, 400, "tool_choice"),
    ({"metadata": NESTED}, 400, "metadata"),
    ({"reasoning": {"effort": NESTED}}, 400, "reasoning"),
    ({"tools": [{**WEATHER, "parameters": NESTED, "strict": False}]}, 400, "tools"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, 400, "input"),
    ({"input": []}, 400, "messages"),
    ({"input": None}, 400, "input"),
    ({"input": "x" * 600}, 400, "prompt"),
    ({"truncation": "some"}, 400, "truncation"),
    ({"max_output_tokens": 0}, 400, "max_output_tokens"),
    ({"text": {"format": {"type": "json_schema"}}}, 400, "response_format"),
    ({"model": "no"}, 404, "model"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests(api: Any, fields: Any, status: int, param: str, stream: bool) -> None:
    reply = await api.respond(
        fields.get("input", "Hi"), stream=stream, **{**fields, "input": fields.get("input", "Hi")}
    )
    assert reply.status == status, reply.body
    assert reply.json["error"]["param"] == param
    assert reply.json["error"]["code"] == status


async def test_a_failure_on_the_way(api: Any) -> None:
    api.engine.fail_at = 1
    api.engine.failure = ExecutionFailedError("out of luck")
    assert (await api.respond("Hi")).status == 500
    found = events(await api.respond("Hi", stream=True))
    assert found[-2] == {"type": "error", "code": "500", "message": "out of luck", "param": None}
    assert found[-1]["type"] == "response.failed"
    assert found[-1]["response"]["error"] == {"code": "server_error", "message": "out of luck"}
    assert api.engine.active == 0
