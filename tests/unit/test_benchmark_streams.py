"""Generation benchmarks: streamed answers as bytes, cut anywhere, and the clients that receive them."""

from __future__ import annotations

import asyncio
import json
import struct
from itertools import pairwise
from typing import Any

import grpc
import pytest
from benchmark_import import module
from hypothesis import given
from hypothesis import strategies as st

client = module("generation.client")
events = module("generation.events")

LONG_SECONDS = 60


def cut(data: bytes, places: list[int]) -> list[tuple[float, bytes]]:
    """Cut data at places; piece k arrives at k."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [(float(k), data[a:b]) for k, (a, b) in enumerate(pairwise(edges))]


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.integers(0, 200), max_size=8))
def test_grpc_messages_survive_any_cut(messages: list[bytes], places: list[int]) -> None:
    data = b"".join(struct.pack(">BI", 0, len(message)) + message for message in messages)
    found = list(events.grpc_messages(cut(data, places)))
    assert [message for _, message in found] == messages
    assert [moment for moment, _ in found] == sorted(moment for moment, _ in found)


def test_half_a_grpc_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="not complete"):
        list(events.grpc_messages([(0.0, struct.pack(">BI", 0, 4) + b"abc")]))


def sse(*contents: str, chunk: int = 7) -> bytes:
    """An HTTP answer of events, in chunks that do not care where events end."""
    text = "".join(f"data: {content}\n\n" for content in contents).encode()
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


@given(st.integers(1, 60), st.lists(st.integers(0, 400), max_size=8))
def test_events_survive_any_chunks_and_any_cut(chunk: int, places: list[int]) -> None:
    found = list(events.sse_events(cut(sse("one", '{"a": "é"}', "[DONE]", chunk=chunk), places)))
    assert [content for _, content in found] == [b"one", '{"a": "é"}'.encode()]


def completion(text: str, usage: int | None = None) -> str:
    choices = [{"index": 0, "text": text}] if usage is None else []
    return json.dumps({"choices": choices, "usage": None if usage is None else {"completion_tokens": usage}})


def test_completion_tokens_have_the_times_of_their_events() -> None:
    pieces = [(0.0, sse(completion("a"))[:-5])]
    for moment, content in ((1.0, completion("b")), (2.0, completion("c")), (2.5, completion("", 3))):
        part = f"data: {content}\n\n".encode()
        pieces.append((moment, b"%x\r\n%s\r\n" % (len(part), part)))
    assert events.completion_times(pieces) == [0.0, 1.0, 2.0]


def test_tokens_that_events_do_not_tell_apart_are_spread() -> None:
    assert events.spread([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert events.spread([1.0, 2.0, 3.0], 2) == [1.0, 3.0]
    assert events.spread([1.0], 3) == [1.0, 1.0, 1.0]
    assert events.spread([], 3) == []


@pytest.mark.parametrize(
    ("contents", "problem"),
    [(['{"error": {"message": "no"}}'], "has an error"), ([completion("a")], "no usage")],
)
def test_answers_that_are_not_whole_are_errors(contents: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        events.completion_times([(0.0, sse(*contents))])


def stream_job(protocol: str, address: str, target: str, *bodies: bytes, cut_after: float = 0.0) -> Any:
    return client.StreamJob(protocol, address, target, (), bodies, len(bodies), [], cut_after)


async def test_streamed_calls_hand_every_message_on() -> None:
    async def answer(body: bytes, context: Any) -> Any:
        for part in range(3):
            await asyncio.sleep(0.01)
            yield body + bytes([part])
        if body == b"bad":
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        if body == b"endless":
            await asyncio.sleep(LONG_SECONDS)

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe.Probe", {"Ask": handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        received = await client._do(stream_job("grpc", address, "/probe.Probe/Ask", b"a", b"bad"))
        messages = [[message for _, message in events.grpc_messages(pieces)] for pieces in received.pieces]
        assert messages == [[b"a\0", b"a\1", b"a\2"], [b"bad\0", b"bad\1", b"bad\2"]]
        assert len({moment for moment, _ in received.pieces[0]}) == 3
        assert len(received.trace.errors) == 1
        assert "broken" in received.trace.errors[0]
        left = await client._do(stream_job("grpc", address, "/probe.Probe/Ask", b"endless", cut_after=0.3))
        assert left.trace.errors == []
        assert len(left.pieces[0]) == 3
    finally:
        await server.stop(0)


async def test_streamed_http_answers_end_with_their_last_chunk() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if body == b"bad":
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull")
                break
            data = sse(completion(body.decode()), completion("", 1), "[DONE]")
            for start in range(0, len(data), 11):
                writer.write(data[start : start + 11])
                await asyncio.sleep(0)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        # One caller with two requests: the connection is used again.
        job = client.StreamJob("http", address, "/v1/completions", (), (b"a", b"b"), 1, [])
        received = await client._do(job)
        assert received.trace.errors == []
        assert [len(events.completion_times(pieces)) for pieces in received.pieces] == [1, 1]
        refused = await client._do(stream_job("http", address, "/v1/completions", b"bad"))
        assert "429 Too Many Requests" in refused.trace.errors[0]
