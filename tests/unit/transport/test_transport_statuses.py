"""How RPCs end, and the metadata both ways: the same of our server and of grpcio's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import Serve, channel_to, failed
from unit.transport.raw_peer import SECONDS

pytestmark = pytest.mark.timeout(60)
TEXT = "größer als 100 % 😀 失敗\n\t\x7f"
TRAILERS = (("why", "because"), ("why", "also"), ("raw-bin", b"\x00\xff,\n"))


def pairs(metadata: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in metadata]


async def test_all_values_of_metadata_reach_the_handler_in_their_order(serve: Serve) -> None:
    seen: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.extend(pairs(context.invocation_metadata()))
        return b""

    running = await serve({"Look": grpc.unary_unary_rpc_method_handler(look)})
    sent = (
        ("key", "one"),
        ("raw-bin", b"\x00\x01\xfe\xff"),
        ("key", "two, three"),
        ("raw-bin", b""),
        ("raw-bin", b"a,b"),
        ("empty", ""),
        ("long", "x" * 5000),
    )
    await running.unary_unary("Look")(b"", metadata=sent, timeout=SECONDS)
    agents = [item for item in seen if item[0] == "user-agent"]
    assert len(agents) == 1
    assert agents[0][1].startswith("grpc-python-asyncio/")
    for key in ("key", "raw-bin", "empty", "long"):
        assert [value for name, value in seen if name == key] == [
            value for name, value in sent if name == key
        ]
    assert len(seen) == len(sent) + 1


async def test_metadata_of_many_calls_is_not_mixed_up(serve: Serve) -> None:
    async def look(request: bytes, context: Any) -> bytes:
        return str(dict(pairs(context.invocation_metadata()))["call"]).encode()

    running = await serve({"Look": grpc.unary_unary_rpc_method_handler(look)})
    for _ in range(2):
        calls = [
            running.unary_unary("Look")(b"", metadata=(("call", f"c{index}"),), timeout=SECONDS)
            for index in range(100)
        ]
        assert await asyncio.gather(*calls) == [b"c%d" % index for index in range(100)]


async def test_initial_metadata_comes_before_the_first_message(serve: Serve) -> None:
    go = asyncio.Event()

    async def wait(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("first", "1"), ("first", "2"), ("raw-bin", b"\xff")))
        await go.wait()
        yield b"then"

    running = await serve({"Wait": grpc.unary_stream_rpc_method_handler(wait)})
    call = running.unary_stream("Wait")(b"", timeout=SECONDS)
    initial = pairs(await call.initial_metadata())
    go.set()
    assert [item for item in initial if item[0] in {"first", "raw-bin"}] == [
        ("first", "1"),
        ("first", "2"),
        ("raw-bin", b"\xff"),
    ]
    assert await call.read() == b"then"


async def test_initial_metadata_of_a_unary_answer(serve: Serve) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata(TRAILERS)
        return b"x"

    running = await serve({"Answer": grpc.unary_unary_rpc_method_handler(answer)})
    call = running.unary_unary("Answer")(b"", timeout=SECONDS)
    assert await call == b"x"
    assert ("first", "1") in pairs(await call.initial_metadata())
    assert pairs(await call.trailing_metadata()) == list(TRAILERS)


async def test_trailing_metadata_of_a_stream(serve: Serve) -> None:
    async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"
        context.set_trailing_metadata(TRAILERS)

    running = await serve({"Answer": grpc.unary_stream_rpc_method_handler(answer)})
    call = running.unary_stream("Answer")(b"", timeout=SECONDS)
    assert [one async for one in call] == [b"x"]
    assert pairs(await call.trailing_metadata()) == list(TRAILERS)


async def test_metadata_of_48_kib_is_sent_back(own: Serve) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("long", "y" * 48 * 1024),))
        return b"x"

    running = await own({"Answer": grpc.unary_unary_rpc_method_handler(answer)})
    options = (("grpc.absolute_max_metadata_size", 1 << 20), ("grpc.max_metadata_size", 1 << 20))
    async with channel_to(running.address, *options) as channel:
        call = channel.unary_unary("/t.T/Answer")(b"", timeout=SECONDS)
        assert await call == b"x"
        assert pairs(await call.trailing_metadata()) == [("long", "y" * 48 * 1024)]


@pytest.mark.parametrize("name", ["x y", "Größe", "Upper", ""])
async def test_metadata_that_cannot_be_sent_fails_the_rpc(own: Serve, name: str) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(((name, "x"),))
        return b"x"

    running = await own({"Answer": grpc.unary_unary_rpc_method_handler(answer)})
    error = await failed(running.unary_unary("Answer")(b"", timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "ValueError" in (error.details() or "") or "UnicodeEncodeError" in (error.details() or "")


@pytest.mark.parametrize("answers", [0, 2])
async def test_abort_before_and_after_the_first_answer(serve: Serve, answers: int) -> None:
    async def abort(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(answers):
            yield b"x"
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, TEXT, TRAILERS)

    running = await serve({"Abort": grpc.unary_stream_rpc_method_handler(abort)})
    call = running.unary_stream("Abort")(b"", timeout=SECONDS)
    got = [await call.read() for _ in range(answers)]
    error = await failed(call.read())
    assert got == [b"x"] * answers
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == TEXT
    assert pairs(error.trailing_metadata()) == list(TRAILERS)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_abort_of_a_unary_rpc_with_each_code(serve: Serve, code: grpc.StatusCode) -> None:
    async def abort(request: bytes, context: Any) -> bytes:
        await context.abort(code, TEXT)
        return b"never"

    running = await serve({"Abort": grpc.unary_unary_rpc_method_handler(abort)})
    error = await failed(running.unary_unary("Abort")(b"", timeout=SECONDS))
    assert (error.code(), error.details()) == (code, TEXT)


async def test_abort_uses_trailers_and_details_that_were_set_before(serve: Serve) -> None:
    async def abort(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(TRAILERS)
        context.set_details("set before")
        await context.abort(grpc.StatusCode.DATA_LOSS)
        return b"never"

    running = await serve({"Abort": grpc.unary_unary_rpc_method_handler(abort)})
    error = await failed(running.unary_unary("Abort")(b"", timeout=SECONDS))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "set before")
    assert pairs(error.trailing_metadata()) == list(TRAILERS)


async def test_code_that_is_set_ends_the_rpc_without_an_answer(serve: Serve) -> None:
    async def refuse(request: bytes, context: Any) -> None:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("not here")

    running = await serve({"Refuse": grpc.unary_unary_rpc_method_handler(refuse)})
    error = await failed(running.unary_unary("Refuse")(b"", timeout=SECONDS))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "not here")


@pytest.mark.parametrize("code", [None, grpc.StatusCode.ABORTED])
async def test_handler_that_raises_ends_with_unknown_or_the_code_that_is_set(
    serve: Serve, code: grpc.StatusCode | None
) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(TRAILERS)
        if code is not None:
            context.set_code(code)
        raise LookupError("lost")

    running = await serve({"Fail": grpc.unary_unary_rpc_method_handler(fail)})
    error = await failed(running.unary_unary("Fail")(b"", timeout=SECONDS))
    assert error.code() is (code or grpc.StatusCode.UNKNOWN)
    assert error.details() == "Unexpected <class 'LookupError'>: lost"
    assert pairs(error.trailing_metadata()) == list(TRAILERS)


async def test_stream_that_raises_after_an_answer_ends_with_unknown(serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError

    running = await serve({"Fail": grpc.unary_stream_rpc_method_handler(fail)})
    call = running.unary_stream("Fail")(b"", timeout=SECONDS)
    assert await call.read() == b"x"
    assert (await failed(call.read())).code() is grpc.StatusCode.UNKNOWN


async def test_request_that_cannot_be_deserialised_is_unknown(serve: Serve) -> None:
    async def never(request: int, context: Any) -> bytes:
        raise AssertionError("the handler must not run")

    running = await serve({"Never": grpc.unary_unary_rpc_method_handler(never, int)})
    error = await failed(running.unary_unary("Never")(b"x", timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "invalid literal for int" in (error.details() or "")


@pytest.mark.parametrize("made", ["raise", "text"])
async def test_answer_that_cannot_be_serialised_is_unknown(serve: Serve, made: str) -> None:
    def encode(answer: Any) -> Any:
        if made == "raise":
            raise TypeError("no bytes")
        return "text"

    async def answer(request: bytes, context: Any) -> bytes:
        return b"x"

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"

    handlers = {
        "Answer": grpc.unary_unary_rpc_method_handler(answer, None, encode),
        "Stream": grpc.unary_stream_rpc_method_handler(stream, None, encode),
    }
    running = await serve(handlers)
    error = await failed(running.unary_unary("Answer")(b"", timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "TypeError" in (error.details() or "")
    error = await failed(running.unary_stream("Stream")(b"", timeout=SECONDS).read())
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "TypeError" in (error.details() or "")


async def test_text_with_a_lone_surrogate_still_ends_the_rpc(own: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise ValueError("\ud800")

    running = await own({"Fail": grpc.unary_unary_rpc_method_handler(fail)})
    error = await failed(running.unary_unary("Fail")(b"", timeout=SECONDS))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Unexpected <class 'ValueError'>: ?",
    )


async def test_handler_that_swallows_its_abort_cannot_go_on(serve: Serve) -> None:
    ended = asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            with contextlib.suppress(Exception):
                await context.abort(grpc.StatusCode.ABORTED, "over")
            while True:
                yield b"x"
        finally:
            ended.set()

    running = await serve({"Stubborn": grpc.unary_stream_rpc_method_handler(stubborn)})
    error = await failed(running.unary_stream("Stubborn")(b"", timeout=SECONDS).read())
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "over")
    async with asyncio.timeout(SECONDS):
        await ended.wait()
