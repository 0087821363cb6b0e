"""What ``/v1/completions`` refuses, and how it tells what went wrong."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.server.errors import ExecutionFailedError


@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"prompt": ""}, "prompt", "must be provided and non-empty"),
    ({"prompt": []}, "prompt", "must be provided and non-empty"),
    ({"prompt": None}, "prompt", "must be provided and non-empty"),
    ({"prompt": ["a", 5]}, "prompt", "one list"),
    ({"prompt": [100_000]}, "prompt", "out of vocabulary"),
    ({"prompt": [-1]}, "prompt", "out of vocabulary"),
    ({"prompt": "x" * 600}, "prompt", "Please reduce the length of the input prompt"),
    ({"prompt": ["a"] * 257, "stop_token_ids": [5] * 4096}, "prompt", "send fewer prompts in one request"),
    ({"suffix": "end"}, "suffix", "suffix is not currently supported"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -1, "echo": True}, "max_tokens", "at least 0"),
    ({"max_tokens": 1.5}, "max_tokens", "expected `int"),
    ({"temperature": -1}, "temperature", ""),
    ({"top_p": 0}, "top_p", ""),
    ({"top_p": 1.5}, "top_p", ""),
    ({"top_k": -2}, "top_k", ""),
    ({"min_p": 2}, "min_p", ""),
    ({"repetition_penalty": 0}, "repetition_penalty", ""),
    ({"frequency_penalty": 3}, "frequency_penalty", ""),
    ({"presence_penalty": -3}, "presence_penalty", ""),
    ({"logprobs": 21}, "logprobs", "Requested sample logprobs of 21, which is greater than max allowed: 20"),
    ({"prompt_logprobs": 21, "stream": False}, "prompt_logprobs", "Requested prompt logprobs of 21"),
    ({"logprobs": -2}, "logprobs", ""),
    ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias contains key(s) that cannot be converted"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "out of vocabulary"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
    ({"bad_words": [""]}, "bad_words", ""),
    ({"stop": ""}, "stop", "stop cannot contain an empty string."),
    ({"stop": ["a", ""]}, "stop", "stop cannot contain an empty string."),
    ({"stop_token_ids": [999_999]}, "stop_token_ids", "out of vocabulary"),
    ({"n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling, got 2."),
    ({"n": 0}, "n", ""),
    ({"n": 9}, "n", ""),
    ({"n": 2, "best_of": 1}, "best_of", ""),
    ({"best_of": 3, "stream": True}, "best_of", "streaming"),
    ({"seed": 2**63}, "seed", "less_than_equal"),
    ({"seed": 2**70}, "seed", "less_than_equal"),
    ({"seed": -(2**63) - 1}, "seed", "greater_than_equal"),
    ({"seed": "nan"}, "seed", "whole number"),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"priority": "nan"}, "priority", "whole number"),
    ({"priority": 2**63}, "priority", "less_than_equal"),
    ({"logit_bias": {"5": "nan"}}, "logit_bias", "expected finite numbers"),
    ({"top_k": 2**31}, "top_k", "expected at most 2147483647"),
    ({"min_tokens": 30}, "min_tokens", ""),
    ({"cache_salt": ""}, "cache_salt", ""),
    ({"cache_salt": "a/b"}, "cache_salt", ""),
    ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens", "Please request a smaller truncation size."),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", ""),
    ({"stream_options": {}}, "stream_options", "Stream options can only be defined when `stream=True`."),
    ({"stream_options": {"include_usage": None}}, "stream_options", "Stream options can only be defined"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "not available"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "'json_schema' field must be provided"),
    ({"response_format": {"type": "xml"}}, "response_format", "xml"),
    ({"structured_outputs": {}}, "structured_outputs", "none"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "none"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "none"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "only use one kind"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests(api: Any, fields: Any, param: str, words: str, stream: bool) -> None:
    """A stream is refused with a status too, before its first event."""
    if stream and "stream_options" in fields:
        return
    reply = await api.complete(**{"prompt": "Say", "stream": stream, **fields})
    assert reply.status == 400, reply.body
    assert list(reply.json) == ["error"]
    error = reply.json["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert error["param"] == param
    assert words in error["message"]
    assert api.engine.active == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"5", b"null"])
async def test_bodies_that_are_no_objects(api: Any, body: bytes) -> None:
    reply = await api.post("CreateCompletion", body)
    assert reply.status == 400
    assert reply.json["error"]["code"] == 400


async def test_content_types(api: Any) -> None:
    body = {"prompt": "Say"}
    for kind in ("", "application/json; charset=utf-8", "Application/JSON"):
        assert (await api.post("CreateCompletion", body, content_type=kind)).status == 200
    wrong = await api.post("CreateCompletion", body, content_type="application/x-www-form-urlencoded")
    assert wrong.status == 400
    assert "Only 'application/json' is allowed" in wrong.json["error"]["message"]


@pytest.mark.parametrize(("name", "status"), [
    ("lm", 200), ("lm@1", 200), ("", 200), ("-", 200), ("tgi", 200), ("dummy", 200), (None, 200), ("no", 404),
])  # fmt: skip
async def test_names_of_models(api: Any, name: str | None, status: int) -> None:
    reply = await api.complete("Say", model=name)
    assert reply.status == status
    if status == 404:
        assert reply.json["error"] == {
            "message": "The model `no` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }


async def test_a_full_queue_says_when_to_come_back(api: Any) -> None:
    api.engine.full = True
    for stream in (False, True):
        reply = await api.complete("Say", stream=stream)
        assert reply.status == 429
        assert reply.headers["retry-after"] == "1"
        assert reply.json["error"]["code"] == 429


async def test_all_prompts_are_admitted_or_none(api: Any) -> None:
    started = api.engine.submit

    def third_fails(prompt: Any, sampling: Any) -> Any:
        api.engine.full = len(api.engine.tickets) == 2
        return started(prompt, sampling)

    api.engine.submit = third_fails
    assert (await api.complete(["a", "b", "c"])).status == 429
    assert api.engine.active == 0


async def test_a_failure_on_the_way(api: Any) -> None:
    api.engine.fail_at = 2
    api.engine.failure = ExecutionFailedError("out of luck")
    whole = await api.complete("Say")
    assert whole.status == 500
    expected = {"message": "out of luck", "type": "InternalServerError", "param": None, "code": 500}
    assert whole.json == {"error": expected}
    events = (await api.complete("Say", stream=True)).events
    assert [event["choices"][0]["text"] for event in events[:-1]] == ["H", "e"]
    assert events[-1] == {"error": expected}
    assert (await api.complete(["a", "b"])).status == 500
    assert api.engine.active == 0
