"""The OpenAI Python client against a model that generates: chat, completions, responses, tools, schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

MODEL = "smollm2"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=120) as client:
        yield client


def ask(client: openai.OpenAI, **options: Any) -> Any:
    fields = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    return client.chat.completions.create(**{**fields, **options})


def joined(stream: Any) -> tuple[str, list[str], Any]:
    """Read a stream: its text, its finish reasons and its last usage."""
    text, finishes, usage = "", [], None
    for number, chunk in enumerate(stream):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert (choice.delta.role == "assistant") is (number == 0)
            text += choice.delta.content or ""
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    return text, finishes, usage


def test_chat(client: openai.OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    whole = ask(client)
    text, finishes, usage = joined(ask(client, stream=True))
    assert text == whole.choices[0].message.content
    assert finishes == ["stop"]
    assert usage is None
    _, _, usage = joined(ask(client, stream=True, stream_options={"include_usage": True}))
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


async def test_async_client(server: Any, client: openai.OpenAI) -> None:
    expected = ask(client).choices[0].message.content
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as other:
        fields: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
        answer = await other.chat.completions.create(**fields)
        assert answer.choices[0].message.content == expected
        stream = await other.chat.completions.create(**fields, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == expected


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=16
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ask(client).choices[0].message.content


def test_samples_and_seeds(client: openai.OpenAI) -> None:
    options = {"n": 2, "temperature": 1.0, "seed": 42, "max_tokens": 8}
    first, second = ask(client, **options), ask(client, **options)
    assert [choice.index for choice in first.choices] == [0, 1]
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("top", [0, 5])
def test_chat_logprobs(client: openai.OpenAI, top: int) -> None:
    answer = ask(client, logprobs=True, top_logprobs=top)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) == top for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)
    raw = b"".join(bytes(entry.bytes) for entry in entries)
    assert raw.removesuffix(b"<|im_end|>").decode() == answer.choices[0].message.content
    if top:  # greedy: the sampled token is the likeliest
        assert all(entry.top_logprobs[0].token == entry.token for entry in entries)
        assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)


class City(BaseModel):
    name: str
    continent: Literal["Africa", "Europe", "Asia"]
    big: bool


def test_structured_outputs_parse(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Describe Paris as JSON."}]
    answer = client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=City, temperature=0, max_tokens=64
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@pytest.mark.parametrize(("fields", "check"), [
    ({"structured_outputs": {"choice": ["red", "green"]}}, {"red", "green"}.__contains__),
    ({"guided_choice": ["one", "two"]}, {"one", "two"}.__contains__),
    ({"structured_outputs": {"regex": r"[0-9]{3}-[0-9]{2}"}}, lambda text: len(text) == 6 and text[3] == "-"),
    ({"structured_outputs": {"json": {
        "type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 3}}},
     lambda text: all(isinstance(number, int) for number in json.loads(text))),
    ({"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}}, {"yes", "no"}.__contains__),
])  # fmt: skip
def test_constraints(client: openai.OpenAI, fields: Any, check: Any) -> None:
    text = ask(client, extra_body=fields, max_tokens=48).choices[0].message.content
    assert check(text), text


def test_json_mode(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Give me a JSON object with one key."}]
    answer = ask(client, messages=messages, response_format={"type": "json_object"}, max_tokens=40)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("fields", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "x"}}}},
    {"extra_body": {"structured_outputs": {"regex": "(["}}},
    {"extra_body": {"structured_outputs": {"grammar": "root ::= ("}}},
    {"extra_body": {"structured_outputs": {"json": "{"}}},
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_constraints_that_make_no_sense(client: openai.OpenAI, fields: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, stream=stream, **fields)
    assert ask(client, max_tokens=2).choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tools(client: openai.OpenAI, choice: Any) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
    options = {
        "messages": messages, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 100,
        "parallel_tool_calls": False,
    }  # fmt: skip
    answer = ask(client, **options).choices[0]
    (call,) = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert arguments["unit"] in {"celsius", "fahrenheit"}
    assert answer.message.content is None
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    name, text, finishes = "", "", []
    for chunk in ask(client, stream=True, **options):
        delta = chunk.choices[0].delta
        assert not delta.content
        for piece in delta.tool_calls or ():
            name += piece.function.name or ""
            text += piece.function.arguments or ""
        finishes += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert (name, json.loads(text)) == ("get_weather", arguments)
    assert finishes == [answer.finish_reason]


def test_a_conversation_with_tools(client: openai.OpenAI) -> None:
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]  # fmt: skip
    assert ask(client, messages=messages, tools=[WEATHER]).choices[0].message.role == "assistant"


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Hello, my name is", max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        5,
        10,
    )
    pieces = client.completions.create(
        model=MODEL, prompt="Hello, my name is", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == answer.choices[0].text


def test_equal_prompts_in_one_stream(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    stream = client.completions.create(
        model=MODEL, prompt=["The sky is"] * 2, max_tokens=6, temperature=0, stream=True
    )
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts[0] == texts[1] != ""


def test_responses(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 16}
    answer = client.responses.create(**fields)
    assert "Paris" in answer.output_text
    assert answer.status == "completed"
    with client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == answer.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 1
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**fields, previous_response_id="resp_x")


def test_responses_parse(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL, input="Describe Paris as JSON.", text_format=City, temperature=0, max_output_tokens=64
    )
    assert isinstance(answer.output_parsed, City)


def test_a_base_url_below_a_model(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/models/{MODEL}/proxy/v1", api_key="-") as client:
        assert ask(client, model="whatever", max_tokens=2).model == MODEL


def test_models(client: openai.OpenAI) -> None:
    card: Any = client.models.retrieve(MODEL)
    assert card.max_model_len == 8192


def test_wrong_models(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="nope")
    assert "The model `nope` does not exist." in str(caught.value)
    assert caught.value.request_id
