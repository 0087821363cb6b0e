"""``/v1/chat/completions`` over a scripted engine."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
NO_DEFINITIONS = {"type": "function", "function": {"name": "f", "parameters": {"$defs": [1]}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa\\"ris"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>'


def said(api: Any, text: str) -> None:
    api.engine.script = lambda *_: text


def collect(events: list[Any]) -> dict[int, dict[str, Any]]:
    """Put the choices of a stream together as clients do."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        assert event["object"] == "chat.completion.chunk"
        for choice in event["choices"]:
            delta = choice["delta"]
            if choice["index"] not in choices:
                assert delta == {"role": "assistant", "content": ""}
                choices[choice["index"]] = {"content": "", "calls": [], "finish": [], "logprobs": []}
                continue
            assert "role" not in delta
            found = choices[choice["index"]]
            found["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(found["calls"])
                    found["calls"].append({**call, "function": dict(call["function"])})
                else:
                    entry = found["calls"][call["index"]]
                    entry["function"]["arguments"] += call["function"]["arguments"]
            if choice["finish_reason"] is not None:
                found["finish"].append(choice["finish_reason"])
            if choice["logprobs"]:
                found["logprobs"] += choice["logprobs"]["content"]
    return choices


async def test_one_answer(api: Any) -> None:
    answer = (await api.chat(user="u", metadata={}, unknown=1)).json
    assert answer.pop("id").startswith("chatcmpl-")
    answer.pop("created")
    assert answer == {
        "object": "chat.completion",
        "model": "lm",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant", "content": "Hello wörld", "refusal": None, "annotations": None,
                    "audio": None, "function_call": None, "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": "headrace-1.2",
        "usage": {
            "prompt_tokens": 21, "total_tokens": 34, "completion_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }  # fmt: skip
    assert api.engine.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert api.engine.sampling.max_tokens == 512 - 21


async def test_stream(api: Any) -> None:
    events = (await api.chat(stream=True)).events
    assert events[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert events[1]["choices"] == [
        {"index": 0, "delta": {"content": "H"}, "logprobs": None, "finish_reason": None}
    ]
    assert events[-1]["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert {event["system_fingerprint"] for event in events} == {"headrace-1.2"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert all("usage" not in event for event in events)
    assert collect(events)[0]["content"] == "Hello wörld"


async def test_samples(api: Any) -> None:
    api.engine.script = lambda prompt, sampling, sample: f"answer {sample}"
    answer = (await api.chat(n=2, seed=3)).json
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["answer 0", "answer 1"]
    assert answer["usage"]["completion_tokens"] == 18
    choices = collect((await api.chat(n=2, stream=True)).events)
    assert {index: choice["content"] for index, choice in choices.items()} == {0: "answer 0", 1: "answer 1"}
    assert all(choice["finish"] == ["stop"] for choice in choices.values())


async def test_usage_of_a_stream(api: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await api.chat(stream=True, stream_options=options)).events
    assert events[-1]["choices"] == []
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 13)
    assert {event["usage"]["prompt_tokens"] for event in events} == {21}
    plain = (await api.chat(stream=True, stream_options={"include_usage": True})).events
    assert plain[-1]["usage"] == events[-1]["usage"]
    assert {event["usage"] for event in plain[:-1]} == {None}


@pytest.mark.parametrize("top", [None, 0, 2])
async def test_logprobs(api: Any, top: int | None) -> None:
    said(api, "é!")
    fields = {"logprobs": True, "top_logprobs": top}
    content = (await api.chat(**fields)).json["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [0x21], list(b"<|im_end|>")]
    assert [entry["token"] for entry in content] == ["\ufffd", "\ufffd", "!", "<|im_end|>"]
    assert {entry["logprob"] for entry in content} == {-0.5}
    assert {len(entry["top_logprobs"]) for entry in content} == {top or 0}
    if top:
        assert content[2]["top_logprobs"][1] == {"token": '"', "logprob": -1.5, "bytes": [0x22]}
    streamed = collect((await api.chat(stream=True, **fields)).events)[0]
    assert streamed["logprobs"] == content
    assert streamed["content"] == "é!"
    none = (await api.chat(logprobs=False)).json["choices"][0]["logprobs"]
    assert none is None


async def test_token_ids(api: Any) -> None:
    answer = (await api.chat(return_token_ids=True, max_tokens=2, prompt_logprobs=0)).json
    assert answer["prompt_token_ids"] == api.engine.tickets[-1].prompt
    assert answer["choices"][0]["token_ids"] == api.engine.tokenizer.encode("He").ids
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == 21
    events = (await api.chat(return_token_ids=True, max_tokens=2, stream=True)).events
    assert events[0]["prompt_token_ids"] == api.engine.tickets[-1].prompt
    ids = [token for event in events[1:] for token in event["choices"][0]["token_ids"]]
    assert ids == api.engine.tokenizer.encode("He").ids


async def test_messages_of_all_kinds(api: Any) -> None:
    await api.chat(messages=[
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "name": "x", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "c"}, {"type": "refusal", "refusal": "d"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "narrator", "content": "end", "extra": 1},
    ])  # fmt: skip
    assert api.engine.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc\nd<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "f", "arguments": {"x": 1}}<|im_end|>\n'
        "<|im_start|>tool\n42<|im_end|>\n<|im_start|>narrator\nend<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_continuing_the_last_message(api: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = (await api.chat(messages=messages, **fields)).json
    assert api.engine.prompt.endswith("<|im_start|>assistant\nWell,")
    assert answer["choices"][0]["message"]["content"] == "Well,Hello wörld"
    streamed = collect((await api.chat(messages=messages, stream=True, **fields)).events)
    assert streamed[0]["content"] == "Well,Hello wörld"
    both = await api.chat(messages=messages, continue_final_message=True, add_generation_prompt=True)
    assert both.status == 400
    assert "Cannot set both" in both.json["error"]["message"]


async def test_limits(api: Any) -> None:
    await api.chat(max_tokens=5, max_completion_tokens=7)
    assert api.engine.sampling.max_tokens == 7
    for large in (100_000, 2**31, 2**64 - 1):
        await api.chat(max_tokens=large, priority=-(2**63) + 1)
        assert api.engine.sampling.max_tokens == 491
        assert api.engine.sampling.priority == -(2**63) + 1
    cut = await api.chat(max_tokens=5)
    assert cut.json["choices"][0]["finish_reason"] == "length"
    kept = await api.chat(truncate_prompt_tokens=4, return_token_ids=True)
    assert len(kept.json["prompt_token_ids"]) == 4


@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"messages": []}, "messages", "empty"),
    ({"messages": None}, "messages", ""),
    ({"messages": [{"content": "x"}]}, "messages", "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages", "image_url"),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{"}}]}]}, "messages", "JSON"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "prompt", "reduce the length of the input"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"top_logprobs": 2}, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true."),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "greater than max allowed: 20"),
    ({"seed": 2**64}, "seed", "less_than_equal"),
    ({"n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling, got 2."),
    ({"stream_options": {}}, "stream_options", "only be defined when `stream=True`"),
    ({"tools": []}, "tools", "`tools` must not be an empty array."),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools", "function"),
    ({"tools": [NO_DEFINITIONS], "tool_choice": "required"}, "tools", "`$defs` is not a JSON object"),
    ({"tool_choice": "auto"}, "tool_choice", "When using `tool_choice`, `tools` must be set."),
    ({"tools": [WEATHER], "tool_choice": "must"}, "tool_choice", "Invalid value for `tool_choice`: must!"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice",
     "does not match any of the specified `tools`"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]}}}, "tool_choice",
     "does not match any of the specified `tools`"),
    ({"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
     "tool_choice", "You can only either use constraints for structured outputs or tools, not both."),
    ({"chat_template": "{{"}, "chat_template", "should be valid Jinja"),
])  # fmt: skip
async def test_bad_requests(api: Any, fields: Any, param: str, words: str) -> None:
    reply = await api.chat(**fields)
    assert reply.status == 400, reply.body
    error = reply.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, param)
    assert words in error["message"]


@pytest.mark.parametrize("text", [
    CALL,
    f"Let me see. {CALL}",
    CALL + OTHER,
    f"{CALL}\n{OTHER}",
    "<tool_call> no call at all",
    "plain text with a < b",
    '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
])  # fmt: skip
async def test_calls_of_a_stream_are_those_of_the_answer(api: Any, text: str) -> None:
    said(api, text)
    (choice,) = (await api.chat(tools=[WEATHER, CLOCK])).json["choices"]
    message = choice["message"]
    calls = message.get("tool_calls", [])
    (streamed,) = collect((await api.chat(tools=[WEATHER, CLOCK], stream=True)).events).values()
    assert (streamed["content"] or None) == message["content"]
    names = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in streamed["calls"]] == names
    assert streamed["finish"] == [choice["finish_reason"]]
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert [json.loads(arguments) for _, arguments in names] == (
        [{"city": 'Pa"ris'}] * (CALL in text) + [{"city": "Köln"}] * (OTHER in text) or [{}] * ("{}" in text)
    )
    assert json.dumps(WEATHER, ensure_ascii=False) in api.engine.prompt


async def test_one_call_at_a_time(api: Any) -> None:
    said(api, CALL + OTHER)
    answer = (await api.chat(tools=[WEATHER], parallel_tool_calls=False)).json
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": 'Pa"ris'}


async def test_required_calls_are_forced(api: Any) -> None:
    said(api, '[{"name": "get_weather", "arguments": {"city": "Rome"}}]')
    for fields in ({}, {"stream": True}):
        reply = await api.chat(tools=[WEATHER, CLOCK], tool_choice="required", **fields)
        if fields:
            (found,) = collect(reply.events).values()
            calls, finish = found["calls"], found["finish"][0]
        else:
            choice = reply.json["choices"][0]
            calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
            assert choice["message"]["content"] is None
        assert calls[0]["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
        assert finish == "tool_calls"
    schema = json.loads(api.engine.sampling.grammar.text)
    assert [item["properties"]["name"] for item in schema["items"]["anyOf"]] == [
        {"const": "get_weather"}, {"const": "get_time"},
    ]  # fmt: skip


async def test_a_named_function_is_called_and_that_is_no_reason_to_stop(api: Any) -> None:
    said(api, '{"city": "Rome"}')
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = (await api.chat(tools=[WEATHER, CLOCK], tool_choice=choice)).json["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"] == {
        "name": "get_weather", "arguments": '{"city": "Rome"}',
    }  # fmt: skip
    assert answer["finish_reason"] == "stop"
    assert json.loads(api.engine.sampling.grammar.text) == WEATHER["function"]["parameters"]
    (streamed,) = collect((await api.chat(tools=[WEATHER], tool_choice=choice, stream=True)).events).values()
    assert streamed["calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    assert streamed["finish"] == ["stop"]


async def test_a_call_that_is_cut_off(api: Any) -> None:
    said(api, CALL)
    answer = (await api.chat(tools=[WEATHER], max_tokens=60)).json["choices"][0]
    assert answer["finish_reason"] == "length"


async def test_no_tools(api: Any) -> None:
    said(api, CALL)
    answer = (await api.chat(tools=[WEATHER], tool_choice="none")).json["choices"][0]
    assert answer["message"]["content"] == CALL
    assert "tool_calls" not in answer["message"]
    assert "get_weather" not in api.engine.prompt


async def test_allowed_tools(api: Any) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "get_time"}}],
        },
    }
    said(api, '[{"name": "get_time", "arguments": {}}]')
    await api.chat(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert "get_weather" not in api.engine.prompt
    assert "get_weather" not in api.engine.sampling.grammar.text


async def test_a_caller_who_goes_away_frees_the_engine(api: Any) -> None:
    from headrace.server.services.openai_generation import OpenaiGenerationService

    class Body:
        content_type = ""
        data = b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true}'

    class Request:
        body = Body

    class Call:
        headers = MappingProxyType[str, str]({})
        model_id = surface = ""
        model = None

    service = OpenaiGenerationService(api.repository, api.generating, "1")
    for pieces in (0, 1, 3):
        stream: Any = await service.CreateChatCompletion(Request, Call())  # type: ignore[arg-type]
        assert api.engine.active == 1
        for _ in range(pieces):
            await anext(stream.chunks)
        await stream.chunks.aclose()
        assert api.engine.active == 0
