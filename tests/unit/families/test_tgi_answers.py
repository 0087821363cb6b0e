"""Answers of Text Generation Inference that come at once: texts, details, headers, errors, facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tgi_facade import CONTEXT, Facade, refusal

from headrace.server.codecs.tgi_errors import error_json
from headrace.server.errors import (
    DeadlineExceededError,
    ExecutionFailedError,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotReadyError,
    PayloadTooLargeError,
    QueueFullError,
    ServerDrainingError,
    TaskNotSupportedError,
    WorkerCrashedError,
)
from headrace.server.services.call import HttpReply, HttpStream
from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
def tgi() -> Iterator[Facade]:
    tokenizing = Tokenizing(1)
    yield Facade(tokenizing)
    tokenizing.close()


async def test_t15_the_text_alone(tgi: Facade) -> None:
    reply = await tgi.generate("hi")
    assert reply.json == {"generated_text": "hello world"}
    assert reply.content_type == "application/json"


async def test_t33_details(tgi: Facade) -> None:
    ids = tgi.engine.script
    assert (await tgi.generate("hi", details=True)).json == {
        "generated_text": "hello world",
        "details": {
            "finish_reason": "eos_token",
            "generated_tokens": 3,
            "seed": None,
            "prefill": [],
            "tokens": [
                {"id": token, "text": text, "logprob": -token / 100, "special": special}
                for token, text, special in zip(
                    ids, ("hello", " world", "<|im_end|>"), (False, False, True), strict=True
                )
            ],
        },
    }


async def test_t38_the_seed_is_told(tgi: Facade) -> None:
    given = (await tgi.generate(details=True, do_sample=True, seed=2**64 - 1)).json
    assert given["details"]["seed"] == 2**64 - 1
    drawn = [(await tgi.generate(details=True, do_sample=True)).json["details"]["seed"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    greedy = (await tgi.generate(details=True, seed=5)).json
    assert greedy["details"]["seed"] is None


async def test_t47_alternatives(tgi: Facade) -> None:
    details = (await tgi.generate(details=True, top_n_tokens=2)).json["details"]
    assert [[token["id"] for token in tokens] for tokens in details["top_tokens"]] == [[10, 11]] * 3
    assert set(details["top_tokens"][0][0]) == {"id", "text", "logprob", "special"}
    assert list(details)[-1] == "top_tokens"
    assert "details" not in (await tgi.generate(top_n_tokens=2)).json


@pytest.mark.parametrize("details", [True, False])
async def test_t31_the_best_of_two(tgi: Facade, details: bool) -> None:
    """Each is drawn with a seed of its own; the likelier text is the answer."""
    worse, better = tgi.tokenizer.encode(" world").ids, tgi.tokenizer.encode("a").ids
    assert better[0] < worse[0]  # so its scripted logprob is higher

    scripts = iter([worse, better])
    engine: Any = tgi.engine
    submit = engine.submit

    def in_turn(*arguments: Any) -> Any:
        tgi.engine.script = next(scripts)
        tgi.engine.finish, tgi.engine.eos = "length", False
        return submit(*arguments)

    engine.submit = in_turn
    found = (await tgi.generate(best_of=2, do_sample=True, details=details)).json
    assert found["generated_text"] == "a"
    seeds = [ticket.sampling.seed for ticket in tgi.engine.tickets]
    assert len(set(seeds)) == 2
    if not details:
        assert "details" not in found
        return
    (other,) = found["details"]["best_of_sequences"]
    assert (other["generated_text"], other["finish_reason"], other["seed"]) == (" world", "length", seeds[0])
    assert found["details"]["seed"] == seeds[1]
    assert set(other) == {
        "generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"
    }  # fmt: skip


async def test_t31_when_one_of_two_is_refused_the_other_is_given_up(tgi: Facade) -> None:
    engine: Any = tgi.engine
    submit = engine.submit

    def once(*arguments: Any) -> Any:
        if tgi.engine.tickets:
            raise QueueFullError("Exceeds maximum queue size")
        return submit(*arguments)

    engine.submit = once
    reply = await tgi.generate(best_of=2, do_sample=True)
    assert reply.error == (429, "Model is overloaded", "overloaded")
    assert reply.headers == {"retry-after": "1"}
    assert [ticket.closed for ticket in tgi.engine.tickets] == [True]


@pytest.mark.parametrize(("whole", "text"), [(True, "hihello world"), (False, "hello world")])
async def test_t37_the_prompt_before_the_text(tgi: Facade, whole: bool, text: str) -> None:
    assert (await tgi.generate("hi", return_full_text=whole)).json["generated_text"] == text
    assert (await tgi.stream("hi", return_full_text=whole)).events[-1]["generated_text"] == text
    parameters = {"return_full_text": whole, "truncate": 1}
    cut = await tgi.requests.generate({"inputs": "hi", "parameters": parameters}, tgi.call())
    assert text.encode() in cut.body  # all of the prompt, not what was kept of it


async def test_t17_compat_answers_a_list_with_the_prompt(tgi: Facade) -> None:
    reply = await tgi.requests.compat({"inputs": "hi"}, tgi.call())
    assert isinstance(reply, HttpReply)
    assert reply.body == b'[{"generated_text":"hihello world"}]'
    assert ("x-generated-tokens", "3") in reply.headers
    body = {"inputs": "hi", "stream": False, "parameters": {"return_full_text": False}}
    bare = await tgi.requests.compat(body, tgi.call())
    assert isinstance(bare, HttpReply)
    assert bare.body == b'[{"generated_text":"hello world"}]'


async def test_t17_compat_streams(tgi: Facade) -> None:
    reply = await tgi.requests.compat({"inputs": "hi", "stream": True}, tgi.call())
    assert isinstance(reply, HttpStream)
    chunks = [chunk async for chunk in reply.chunks]
    assert len(chunks) == 3
    assert b'"generated_text":"hihello world"' in chunks[-1]


async def test_predictions(tgi: Facade) -> None:
    call = tgi.call()
    instance = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
    assert await tgi.requests.prediction(instance, call) == "hello world"
    assert call.model is not None
    assert call.model.name == "llm"
    error = await refusal(tgi.requests.prediction({"inputs": ""}, call))
    assert error_json(error)[0] == 422


def test_t18_info(tgi: Facade) -> None:
    import json

    call = tgi.call()
    found = json.loads(tgi.requests.info(call, tgi.model).body)
    assert call.model is not None
    assert call.model.name == "llm"
    assert found == {
        "model_id": "llm",
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 1024,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": CONTEXT - 1,
        "max_total_tokens": CONTEXT,
        "validation_workers": 2,
        "max_client_batch_size": 1024,
        "router": "text-generation-router",
        "version": "1.2",
        "sha": None,
        "docker_label": None,
    }


async def test_t26_headers(tgi: Facade) -> None:
    headers = (await tgi.generate("ünï")).headers
    assert list(headers) == [
        "x-compute-type", "x-compute-characters", "x-compute-time", "x-total-time", "x-validation-time",
        "x-queue-time", "x-inference-time", "x-time-per-token", "x-prompt-tokens", "x-generated-tokens",
    ]  # fmt: skip
    assert headers.pop("x-compute-type") == "cpu"
    assert float(headers.pop("x-compute-time")) > 0
    assert all(text.isdecimal() for text in headers.values())
    assert (headers["x-compute-characters"], headers["x-prompt-tokens"]) == ("3", "5")
    assert headers["x-generated-tokens"] == "3"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidArgumentError("no"), (422, "validation", "Input validation error: no")),
        (TaskNotSupportedError("no"), (422, "validation", "Input validation error: no")),
        (ModelNotFoundError("no"), (404, "model_not_found", "no")),
        (PayloadTooLargeError("no"), (413, "payload_too_large", "no")),
        (QueueFullError("no"), (429, "overloaded", "Model is overloaded")),
        (ExecutionFailedError("no"), (424, "generation", "Request failed during generation: no")),
        (DeadlineExceededError("no"), (504, "timeout", "no")),
        (ModelNotReadyError("no"), (503, "unavailable", "no")),
        (WorkerCrashedError("no"), (503, "unavailable", "no")),
        (ServerDrainingError("no"), (503, "unavailable", "no")),
        (HeadraceError("no"), (500, "incomplete_generation", "no")),
    ],
)
def test_t25_errors(error: HeadraceError, expected: tuple[int, str, str]) -> None:
    status, kind, text = expected
    assert error_json(error) == (status, b'{"error":"%b","error_type":"%b"}' % (text.encode(), kind.encode()))


@pytest.mark.parametrize("rpc", ["Generate", "GenerateStream", "ChatTokenize"])
@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b'{"inputs"', "application/json", 400, "Failed to parse the request body as JSON: "),
        (b"", "application/json", 400, "Failed to parse the request body as JSON: "),
        (b"[]", "application/json", 422, "Failed to deserialize the JSON body into the target type: "),
        (b"{}", "text/plain", 415, "Expected request with `Content-Type: application/json`"),
    ],
)
async def test_t25_bodies_that_are_no_requests(
    tgi: Facade, rpc: str, body: bytes, content_type: str, status: int, text: str
) -> None:
    found, message, _ = (await tgi.post(rpc, body, content_type=content_type)).error
    assert found == status
    assert message.startswith(text)


@pytest.mark.parametrize("content_type", ["", "application/json; charset=utf-8", "application/vnd.x+json"])
async def test_content_types_that_are_fine(tgi: Facade, content_type: str) -> None:
    assert (await tgi.post("Generate", {"inputs": "hi"}, content_type=content_type)).status == 200


async def test_a_model_may_be_named(tgi: Facade) -> None:
    for name in (None, "", "tgi", "-", "dummy", "llm"):
        assert (await tgi.post("Generate", {"inputs": "hi", "model": name})).status == 200
    assert (await tgi.post("Generate", {"inputs": "hi", "model": "no"})).error[0] == 404


async def test_t22_chat_tokenize(tgi: Facade) -> None:
    found = (await tgi.post("ChatTokenize", {"messages": [{"role": "user", "content": "é"}]})).json
    assert found["templated_text"] == "<|im_start|>user\né<|im_end|>\n"
    tokens = found["tokenize_response"]
    raw = found["templated_text"].encode()
    assert all(set(token) == {"id", "text", "start", "stop"} for token in tokens)
    assert tokens[0]["text"] == "<|im_start|>"
    assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(raw))


async def test_t22_a_last_word_of_the_assistant_is_continued(tgi: Facade) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I say"}]
    found = (await tgi.post("ChatTokenize", {"messages": messages})).json
    assert found["templated_text"].endswith("<|im_start|>assistant\nI say")


@pytest.mark.parametrize(
    ("body", "status", "kind", "text"),
    [
        ({}, 422, "validation", "Failed to deserialize the JSON body into the target type: `messages` is"),
        ({"messages": []}, 422, "validation", "Input validation error: "),
        ({"messages": [{"content": "x"}]}, 422, "validation", "Input validation error: "),
        (
            {"messages": [{"role": "user", "content": "x"}], "chat_template": "{% if %}"},
            422,
            "template_error",
            "Template error: ",
        ),
    ],
)
async def test_t22_conversations_that_are_refused(
    tgi: Facade, body: Any, status: int, kind: str, text: str
) -> None:
    found = (await tgi.post("ChatTokenize", body)).error
    assert (found[0], found[2]) == (status, kind)
    assert found[1].startswith(text)
