"""The OICM Inference Gateway Guide's chats, one test per row of the feature table (``O17``: row O17)."""

# ruff: noqa: N802 - the tests are named by the rows

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import requests

HEADERS = {"Authorization": "Bearer some-key"}
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"inputs": QUESTION, "max_new_tokens": 12, "do_sample": False}
SNIPPETS = Path(__file__).with_name("data") / "oicm-snippets.txt"


@pytest.fixture
def proxy(server: Any) -> str:
    return f"{server.url}/models/smollm2/proxy/v1"


def chat(proxy: str, accept: Any = "*/*", **payload: Any) -> requests.Response:
    headers = {**HEADERS, "accept": accept}
    return requests.post(f"{proxy}/chat/completions", headers=headers, json=payload, timeout=110)


def text(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def prompt(proxy: str, answer: requests.Response) -> str:
    """The prompt that the engine got; the request asks for ``return_token_ids``."""
    assert answer.status_code == 200, answer.text
    ids = {"tokens": answer.json()["prompt_token_ids"]}
    found: str = requests.post(f"{proxy.removesuffix('/v1')}/detokenize", json=ids, timeout=60).json()[
        "prompt"
    ]
    return found


def page_template() -> dict[str, Any]:
    """The guide's payload with a chat template; it is printed as Python."""
    snippet = SNIPPETS.read_text().split("=== chat template\n")[1].split("\n=== ")[0]
    payload: dict[str, Any] = ast.literal_eval(snippet.strip())
    return payload


@pytest.mark.parametrize("field", ["temperature", "top_p"])
def test_O15_O16_defaults_of_temperature_and_top_p(server: Any, proxy: str, field: str) -> None:
    given = {"temperature": 0.7, "top_p": 0.9}
    fields = {"messages": MESSAGES, "seed": 11, "max_tokens": 16}
    silent = chat(proxy, **fields, **{key: value for key, value in given.items() if key != field})
    assert text(silent) == text(chat(proxy, **fields, **given)) == text(chat(proxy, **fields))


def test_O15_O16_they_hold_below_the_proxy_only(server: Any, proxy: str) -> None:
    story = {"messages": [{"role": "user", "content": "Tell a story."}], "seed": 3, "max_tokens": 24}
    elsewhere = text(chat(f"{server.url}/v1", **story))
    assert elsewhere == text(chat(proxy, **story, temperature=1, top_p=1))
    assert elsewhere != text(chat(proxy, **story))


def test_O17_a_payload_as_tgi_has_it(proxy: str) -> None:
    with chat(proxy, "text/event-stream", **GREEDY, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "Paris" in said
    assert said == text(chat(proxy, messages=MESSAGES, max_tokens=12, temperature=0))
    templated = prompt(proxy, chat(proxy, **GREEDY, return_token_ids=True))
    assert templated.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")


def test_O18_the_same_payload_at_once(proxy: str) -> None:
    for stream in ({"stream": False}, {}, {"stream": None}):
        answer = chat(proxy, "text/event-stream", **GREEDY, **stream)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["object"] == "chat.completion"
        assert answer.json()["choices"][0]["finish_reason"] in {"stop", "length"}
        assert answer.json()["usage"]["completion_tokens"] <= 12
    assert "Paris" in text(answer)


def test_O19_every_event_is_data_and_a_space(proxy: str) -> None:
    lines = [line for line in chat(proxy, **GREEDY, stream=True).text.split("\n") if line]
    assert len(lines) > 4
    assert all(line[:6] == "data: " and line[6] in "{[" for line in lines)
    first, *rest = (json.loads(line[6:]) for line in lines[:-1])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(isinstance(chunk["choices"][0]["delta"]["content"], str) for chunk in rest[:-1])
    assert lines[-1][6:] == "[DONE]"


def test_O20_accept_does_not_switch_streaming_on(proxy: str) -> None:
    answer = chat(proxy, "text/event-stream", **GREEDY)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    streamed = chat(proxy, "application/json", **GREEDY, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_O21_O23_O24_the_guides_chat_template(proxy: str) -> None:
    answer = chat(proxy, **page_template(), max_tokens=2, return_token_ids=True)
    rendered = prompt(proxy, answer)
    assert [line.strip() for line in rendered.split("\n") if line.strip()] == [
        "Be friendly", "user: What's the capital of UAE?", "assistant:",
    ]  # fmt: skip
    assert "<|im_start|>" not in rendered
    assert "\n\nuser: " in rendered
    asked = {**page_template(), "messages": page_template()["messages"][:2]}
    assert (
        prompt(proxy, chat(proxy, **asked, max_tokens=2, return_token_ids=True))
        .rstrip()
        .endswith("Assistant:")
    )


def test_O21_messages_is_the_only_variable(proxy: str) -> None:
    for template in ("{{ question }}", "{{ bos_token }}{{ messages[0].content }}"):
        answer = chat(proxy, messages=MESSAGES, chat_template=template)
        assert answer.status_code == 422
        assert "messages only" in answer.json()["error"]["message"]


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages", "{% for m in messages %}", "{{ 1 | no }}"])
def test_O22_invalid_jinja(proxy: str, template: str) -> None:
    answer = chat(proxy, messages=MESSAGES, chat_template=template, stream=True)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "should be valid Jinja" in error["message"]
    assert (error["param"], error["code"]) == ("chat_template", 422)


def test_O24_a_trailing_empty_message_of_the_assistant(proxy: str) -> None:
    opened = [*MESSAGES, {"role": "assistant", "content": ""}]
    fields = {"max_tokens": 4, "temperature": 0, "return_token_ids": True}
    found, closed = chat(proxy, messages=opened, **fields), chat(proxy, messages=MESSAGES, **fields)
    assert prompt(proxy, found) == prompt(proxy, closed)
    assert text(found) == text(closed)


def test_O25_messages_as_a_plain_text(proxy: str) -> None:
    answer = chat(proxy, messages="once upon a time, ", max_tokens=8, temperature=0, return_token_ids=True)
    assert prompt(proxy, answer) == "once upon a time, "
    raw: Any = {"prompt": "once upon a time, ", "max_tokens": 8, "temperature": 0}
    completed = requests.post(f"{proxy}/completions", json=raw, headers=HEADERS, timeout=110).json()
    assert text(answer) == completed["choices"][0]["text"]


def test_O26_the_listed_model_chats(proxy: str) -> None:
    headers = {**HEADERS, "accept": "text/event-stream"}
    name = requests.get(f"{proxy}/models", headers=headers, timeout=60).json()["data"][0]["id"]
    assert chat(proxy, model=name, messages=MESSAGES, max_tokens=2).json()["model"] == name == "smollm2"


def test_O27_openai_chat(proxy: str) -> None:
    fields: dict[str, Any] = {"temperature": 0.9, "top_p": 0.7, "max_tokens": 12, "stream": True}
    lines = chat(proxy, "text/event-stream", model="smollm2", messages=MESSAGES, **fields).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[1][6:])["choices"][0]["delta"]["content"]


def test_errors_have_openais_form(server: Any, proxy: str) -> None:
    malformed = requests.post(f"{proxy}/chat/completions", data=b"{", headers=HEADERS, timeout=60)
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, 400)
    unknown = chat(f"{server.url}/models/nope/proxy/v1", **GREEDY)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")
    other = chat(f"{server.url}/models/minilm/proxy/v1", **GREEDY)  # row O43
    assert (other.status_code, other.json()["error"]["type"]) == (400, "BadRequestError")
    hot = chat(proxy, **{**GREEDY, "do_sample": True}, temperature=2.5)
    assert (hot.status_code, hot.json()["error"]["param"]) == (400, "temperature")
