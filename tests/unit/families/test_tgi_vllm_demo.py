"""``/generate`` with a prompt: vLLM's demo server, in the same path as Text Generation Inference."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tgi_facade import Facade

from headrace.server.errors import ExecutionFailedError
from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
def tgi() -> Iterator[Facade]:
    tokenizing = Tokenizing(1)
    yield Facade(tokenizing)
    tokenizing.close()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": "hi"}, {"generated_text": "hello world"}),
        ({"prompt": "hi"}, {"text": ["hihello world"]}),
        ({"prompt": "hi", "inputs": "no"}, {"text": ["hihello world"]}),
        ({"prompt": None, "inputs": "hi"}, {"generated_text": "hello world"}),
    ],
)
async def test_m27_what_the_body_has_decides(tgi: Facade, body: Any, expected: Any) -> None:
    reply = await tgi.post("Generate", body)
    assert (reply.status, reply.json) == (200, expected)


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"inputs": None}, {"text": "hi"}])
async def test_m27_neither_is_refused(tgi: Facade, body: Any) -> None:
    assert (await tgi.post("Generate", body)).error[0] == 422


async def test_m27_the_defaults_are_vllms(tgi: Facade) -> None:
    assert (await tgi.post("Generate", {"prompt": "hi"})).status == 200
    sampling = tgi.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (16, 1.0, 0)
    assert sampling.repetition_penalty == 1.0


async def test_m27_sampling_fields(tgi: Facade) -> None:
    body = {
        "prompt": "hi", "max_tokens": 5, "temperature": 0.5, "top_k": -1, "top_p": 0.9, "n": 2, "best_of": 3,
        "stop": ["x"], "stop_token_ids": [5], "ignore_eos": True, "seed": 4, "frequency_penalty": 1,
        "presence_penalty": -1, "repetition_penalty": 1.5, "skip_special_tokens": None, "unheard_of": 1,
    }  # fmt: skip
    reply = await tgi.post("Generate", body)
    assert reply.json == {"text": ["hihello world"] * 2}
    found = tgi.sampling
    assert (found.max_tokens, found.temperature, found.top_k, found.top_p) == (5, 0.5, 0, 0.9)
    assert (found.n, found.best_of, found.stop_token_ids, found.ignore_eos, found.seed) == (
        2,
        3,
        (5,),
        True,
        4,
    )
    assert (found.frequency_penalty, found.presence_penalty, found.repetition_penalty) == (1, -1, 1.5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0."),
        ({"temperature": -1}, "`temperature` is -1.0, expected"),
        ({"top_p": 0}, "`top_p` is 0.0, expected"),
        ({"n": 0}, "`n` is 0, expected"),
    ],
)
async def test_m27_sampling_fields_out_of_range(tgi: Facade, fields: Any, text: str) -> None:
    status, found, kind = (await tgi.post("Generate", {"prompt": "hi", **fields})).error
    assert (status, kind) == (422, "validation")
    assert found.startswith(f"Input validation error: {text}")


async def test_m28_a_stream_is_objects_that_end_in_nul(tgi: Facade) -> None:
    tgi.say("hello", " 東京")
    reply = await tgi.post("Generate", {"prompt": "hi ", "stream": True})
    assert (reply.status, reply.content_type) == (200, "text/event-stream")
    *pieces, rest = reply.body.split(b"\0")
    assert rest == b""
    texts = [json.loads(piece) for piece in pieces]
    assert texts[0] == {"text": ["hi hello"]}
    assert texts[-1] == {"text": ["hi hello 東京"]}
    for before, after in itertools.pairwise(texts):
        assert after["text"][0].startswith(before["text"][0])


async def test_m28_outputs_of_several_samples_stand_side_by_side(tgi: Facade) -> None:
    reply = await tgi.post("Generate", {"prompt": "hi", "stream": True, "n": 2})
    last = json.loads(reply.body.split(b"\0")[-2])
    assert last == {"text": ["hihello world"] * 2}


async def test_m28_an_error_in_the_middle_is_the_last_object(tgi: Facade) -> None:
    tgi.engine.script = []
    call = tgi.call()
    stream: Any = await tgi.service._demo({"prompt": "hi", "stream": True}, call)
    tgi.engine.tickets[-1].fail(ExecutionFailedError("no"))
    with pytest.raises(ExecutionFailedError) as raised:
        await anext(stream.chunks)
    assert stream.error_event(raised.value) == (
        b'{"error":"Request failed during generation: no","error_type":"generation"}\0'
    )
    assert tgi.engine.tickets[-1].closed
