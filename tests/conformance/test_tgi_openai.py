"""TGI's Messages API on OpenAI's paths, one test per row of the feature table (``T02``: row T02)."""

# ruff: noqa: N802 - the tests are named by the rows

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

MESSAGES: Any = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is deep learning?"},
]
SHORT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "arguments": SCHEMA}}


@pytest.fixture
def url(server: Any) -> str:
    return f"{server.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=110) as client:
        yield client


def post(url: str, path: str = "chat/completions", /, **body: Any) -> requests.Response:
    return requests.post(f"{url}/{path}", json=body, timeout=110)


def ok(answer: requests.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(answer: requests.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_T01_chat(url: str) -> None:
    answer = ok(post(url, model="tgi", messages=MESSAGES, max_tokens=20))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_T02_the_model_tgi_is_the_default_model(url: str) -> None:
    for fields in ({}, {"model": "tgi"}, {"model": None}, {"model": ""}, {"model": "-"}):
        assert ok(post(url, **SHORT, **fields))["model"] == "smollm2"
    unknown = post(url, **SHORT, model="gpt-0")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")


def test_T03_a_stream(url: str) -> None:
    chunks = events(post(url, **SHORT, model="tgi", stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    whole = ok(post(url, **SHORT, model="tgi"))["choices"][0]["message"]["content"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


@pytest.mark.parametrize("key", ["-", "hf_XXX"])
def test_T04_any_key_while_authentication_is_off(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    answer = requests.post(f"{url}/chat/completions", json=SHORT, headers=headers, timeout=110)
    assert answer.status_code == 200


def test_T06_slashes(server: Any) -> None:
    for base in (f"{server.url}/v1/", f"{server.url}//v1", f"{server.url}/models/smollm2/proxy//v1/"):
        assert ok(post(base, **SHORT))["object"] == "chat.completion"
        listed = requests.get(f"{base}/models", timeout=60)
        assert listed.json()["object"] == "list"


def test_T07_the_openai_client(client: openai.OpenAI) -> None:
    fields: Any = {"model": "tgi", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    answer = client.chat.completions.create(**fields, stream=False)
    assert answer.id
    assert answer.created > 0
    assert answer.model == "smollm2"
    assert answer.system_fingerprint
    pieces = [
        message.choices[0].delta.content for message in client.chat.completions.create(**fields, stream=True)
    ]
    assert "".join(piece or "" for piece in pieces) == answer.choices[0].message.content


def test_T08_every_chunk_has_a_choice(url: str) -> None:
    choices: Any = ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}})
    for options in choices:
        assert all(len(chunk["choices"]) == 1 for chunk in events(post(url, **SHORT, stream=True, **options)))


def test_T21_models(url: str) -> None:
    listed = requests.get(f"{url}/models", timeout=60).json()
    assert listed["object"] == "list"
    assert "smollm2" in [model["id"] for model in listed["data"]]


def test_T23_completions(url: str) -> None:
    answer = ok(post(url, "completions", model="tgi", prompt="Hello, my", max_tokens=3, temperature=0))
    assert answer["object"] == "text_completion"
    listed = ok(post(url, "completions", prompt=["Hello, my", "One, two,"], max_tokens=3, temperature=0))
    assert [choice["index"] for choice in listed["choices"]] == [0, 1]
    assert listed["choices"][0]["text"] == answer["choices"][0]["text"]
    assert listed["choices"][0]["finish_reason"] == "length"
    chunks = events(post(url, "completions", prompt="Hello, my", max_tokens=3, temperature=0, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    refused = post(url, "completions", prompt="a", suffix="b")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")
    assert "can be achieved by preprocessing the prompt" in refused.json()["error"]["message"]


@pytest.mark.parametrize("fields", [
    {"temperature": 0.5}, {"top_p": 0.5}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.0},
    {"seed": 42}, {"stop": ["deep"]}, {"n": 2, "temperature": 1}, {"max_tokens": 3},
    {"max_completion_tokens": 3}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 5},
    {"logit_bias": {"5": 1.5}}, {"logit_bias": [0.5]}, {"tool_prompt": "x"}, {"tool_choice": None},
])  # fmt: skip
def test_T50_sampling(url: str, fields: dict[str, Any]) -> None:
    answer = ok(post(url, **{"model": "tgi", **SHORT, **fields}))
    assert len(answer["choices"]) == fields.get("n", 1)
    for choice in answer["choices"]:
        assert (choice["logprobs"] is not None) == ("logprobs" in fields)
        assert all(stop not in choice["message"]["content"] for stop in fields.get("stop", ()))
    nulls = {**SHORT, **dict.fromkeys(fields), "max_tokens": 2}
    assert ok(post(url, **nulls))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("fields", "param"), [
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"frequency_penalty": 2.1}, "frequency_penalty"), ({"n": 0}, "n"),
    ({"presence_penalty": -2.1}, "presence_penalty"), ({"stop": [""]}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
])  # fmt: skip
def test_T50_sampling_out_of_range(url: str, fields: dict[str, Any], param: str) -> None:
    answer = post(url, **{**SHORT, "model": "tgi", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("choice", "reason"), [
    ("required", "tool_calls"), ("get_weather", "stop"), ({"function": {"name": "get_weather"}}, "stop"),
])  # fmt: skip
def test_T51_tools(url: str, choice: Any, reason: str) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields = {"messages": question, "tools": [WEATHER], "temperature": 0, "max_tokens": 80}
    answer = ok(post(url, model="tgi", tool_choice=choice, **fields))["choices"][0]
    assert answer["finish_reason"] == reason
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    for mode in ("auto", "none"):
        plain = ok(post(url, tool_choice=mode, **{**fields, "max_tokens": 4}))["choices"][0]
        assert plain["message"]["content"]
    unknown = post(url, model="tgi", tool_choice={"function": {"name": "nothing"}}, **fields)
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize("form", [
    {"type": "json_object", "value": SCHEMA},
    {"type": "json", "value": SCHEMA},
    {"type": "json", "value": json.dumps(SCHEMA)},
    {"type": "json_schema", "value": {"name": "city", "schema": SCHEMA}},
    {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
])  # fmt: skip
def test_T52_response_formats(url: str, form: Any) -> None:
    question = [{"role": "user", "content": "Paris is a city. Answer as JSON."}]
    answer = ok(post(url, messages=question, response_format=form, temperature=0, max_tokens=80))
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"city"}


def test_T52_a_regular_expression(url: str) -> None:
    form = {"type": "regex", "value": "[0-9]{3}"}
    answer = ok(post(url, **SHORT, response_format=form))
    assert answer["choices"][0]["message"]["content"].isdecimal()


def test_T53_usage_of_a_stream(url: str) -> None:
    chunks = events(post(url, **SHORT, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_the_assistants_last_message_is_continued(url: str) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Deep learning is"}]
    found = ok(post(url, **{**SHORT, "messages": begun}, model="tgi", return_token_ids=True))
    text = ok(post(url.removesuffix("/v1"), "detokenize", model="smollm2", tokens=found["prompt_token_ids"]))
    assert text["prompt"].endswith("<|im_start|>assistant\nDeep learning is")
