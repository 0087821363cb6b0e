"""The events of ``/generate_stream``, byte for byte, and how streams end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_generation import ScriptedTicket, described
from tgi_facade import Facade

from headrace.runtimes.generation.messages import Started, Tokens
from headrace.server.errors import ExecutionFailedError, HeadraceError, WorkerCrashedError
from headrace.server.services.call import HttpStream
from headrace.server.tasks.tokenization import Tokenizing

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture
def tgi() -> Iterator[Facade]:
    tokenizing = Tokenizing(1)
    yield Facade(tokenizing)
    tokenizing.close()


@pytest.mark.parametrize(
    ("golden", "words", "parameters"),
    [
        ("tgi-plain", ("hello", " world"), {}),
        ("tgi-details", ("hello", " world"), {"details": True, "do_sample": True, "seed": 7}),
        ("tgi-top-tokens", ("hello", " Zürich"), {"top_n_tokens": 2, "details": True}),
        ("tgi-characters", ("hello", ' "👍\n', "é"), {"return_full_text": True}),
        ("tgi-stop", ("hello", " world", " stop", " fox"), {"stop": ["rld st"], "details": True}),
    ],
)
async def test_t16_the_bytes_of_a_stream(
    tgi: Facade, golden: str, words: tuple[str, ...], parameters: dict[str, Any]
) -> None:
    tgi.say(*words)
    reply = await tgi.stream('Say "hi"', **parameters)
    assert reply.body == (GOLDEN / f"{golden}.sse").read_bytes()


async def test_t16_headers_of_a_stream(tgi: Facade) -> None:
    reply = await tgi.stream("ünï")
    assert reply.content_type == "text/event-stream"
    assert reply.headers == {
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "x-compute-type": "cpu",
        "x-compute-characters": "3",
    }


async def test_silence_is_filled_as_tgi_fills_it(tgi: Facade) -> None:
    stream = await tgi.requests.stream({"inputs": "hi"}, tgi.call())
    assert isinstance(stream, HttpStream)
    assert stream.keep_alive == b":\n\n"
    await stream.chunks.aclose()
    assert tgi.engine.tickets[-1].closed


async def test_the_texts_of_tokens_are_the_text(tgi: Facade) -> None:
    tgi.say("hello", " 東京", " 👍", " Zürich", "日")
    events = (await tgi.stream()).events
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    told = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
    assert told == events[-1]["generated_text"] == "hello 東京 👍 Zürich日"
    assert {event["generated_text"] for event in events[:-1]} == {None}
    assert "\ufffd" not in told
    assert (events[-1]["token"]["special"], events[-1]["token"]["text"]) == (True, "<|im_end|>")


async def test_a_character_that_stays_incomplete_is_told_with_the_last_token(tgi: Facade) -> None:
    whole = tgi.tokenizer.encode("日").ids
    tgi.say("hello", eos=False)
    tgi.engine.script += whole[:1]
    events = (await tgi.stream(details=True)).events
    assert events[-1]["token"]["text"] == "\ufffd"
    assert events[-1]["generated_text"] == "hello\ufffd"
    assert events[-1]["details"]["finish_reason"] == "length"


async def test_stop_texts_are_part_of_the_text_and_what_follows_is_not(tgi: Facade) -> None:
    tgi.say("hello", " world", " stop", " fox")
    for stop in ("o", "hello w", " world stop", "x"):
        events = (await tgi.stream(stop=[stop], details=True)).events
        text = events[-1]["generated_text"]
        assert text == "hello world stop fox"[: "hello world stop fox".index(stop) + len(stop)]
        assert "".join(event["token"]["text"] for event in events) == text
        assert events[-1]["details"]["finish_reason"] == "stop_sequence"
        assert events[-1]["details"]["generated_tokens"] == len(events)
        answer = await tgi.generate(stop=[stop], details=True)
        assert answer.json["generated_text"] == text
        assert answer.json["details"]["tokens"] == [event["token"] for event in events]


async def feed(tgi: Facade, *news: Any, **parameters: Any) -> list[bytes]:
    """Start a stream, let the engine say ``news`` and collect the chunks; an error ends them."""
    tgi.engine.script = []
    stream = await tgi.requests.stream({"inputs": "hi", "parameters": parameters}, tgi.call())
    ticket: ScriptedTicket = tgi.engine.tickets[-1]
    ticket.push(Started(1, 0))
    for item in news:
        if isinstance(item, HeadraceError):
            ticket.fail(item)
        else:
            ticket.push(item)
    chunks = []
    try:
        while chunk := await anext(stream.chunks, b""):
            chunks.append(chunk)
    except HeadraceError as error:
        chunks.append(stream.error_event(error))
    assert ticket.closed
    return chunks


def tokens(*ids: int, **end: Any) -> Tokens:
    return Tokens(1, 0, ids, tuple(described(token, 0) for token in ids), **end)


async def test_several_tokens_of_one_step_are_several_events(tgi: Facade) -> None:
    (first, second) = tgi.tokenizer.encode("hello world").ids[:2]
    one, two = await feed(tgi, tokens(first, second), tokens(first, second, finish="length"))
    assert [chunk.count(b"data: ") for chunk in (one, two)] == [2, 2]
    assert b'"index":3' in two
    assert b'"index":4' in two


async def test_an_end_without_a_token_has_an_event_all_the_same(tgi: Facade) -> None:
    (first, *_) = tgi.tokenizer.encode("hello").ids
    _, last = await feed(tgi, tokens(first), Tokens(1, 0, (), (), "stop"), details=True)
    assert last == (
        b'data: {"index":2,"token":{"id":3,"text":"","logprob":null,"special":true},"generated_text":"hello",'
        b'"details":{"finish_reason":"eos_token","generated_tokens":1,"seed":null,"input_length":2}}\n\n'
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ExecutionFailedError("no memory"),
            b'data: {"error":"Request failed during generation: no memory","error_type":"generation"}\n\n',
        ),
        (
            WorkerCrashedError("the worker died"),
            b'data: {"error":"the worker died","error_type":"unavailable"}\n\n',
        ),
    ],
)
async def test_errors_in_the_middle_end_the_stream(
    tgi: Facade, error: HeadraceError, expected: bytes
) -> None:
    (first, *_) = tgi.tokenizer.encode("hello").ids
    chunks = await feed(tgi, tokens(first), error)
    assert len(chunks) == 2
    assert chunks[-1] == expected


async def test_a_request_that_is_aborted_ends_as_incomplete(tgi: Facade) -> None:
    tgi.engine.script = []
    stream = await tgi.requests.stream({"inputs": "hi"}, tgi.call({"x-request-id": "mine"}))
    (ticket,) = tgi.engine.tickets
    ticket.push(Started(1, 0), tokens(*tgi.tokenizer.encode("hello").ids[:1]))
    assert b'"index":1' in await anext(stream.chunks)
    assert tgi.generating.running.abort("mine") == 1
    assert [chunk async for chunk in stream.chunks] == [
        b'data: {"error":"Incomplete generation stream","error_type":"incomplete_generation_stream"}\n\n'
    ]


async def test_an_answer_that_is_aborted_is_incomplete(tgi: Facade) -> None:
    tgi.engine.script = []
    answer = asyncio.ensure_future(tgi.post("Generate", {"inputs": "hi"}, headers={"x-request-id": "mine"}))
    while not tgi.generating.running.abort("mine"):
        await asyncio.sleep(0)
    assert (await answer).error == (500, "Incomplete generation", "incomplete_generation")
