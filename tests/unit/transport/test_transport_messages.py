"""Messages of all sizes, compressed ones, and callers and handlers who are slow: the same of both servers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from unit.transport.conftest import EOF, Serve, echo, echo_each
from unit.transport.raw_peer import SECONDS
from waiting import until

pytestmark = pytest.mark.timeout(60)
MEGABYTE = 1 << 20
HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
}


@pytest.mark.parametrize("size", [0, 1, 16_379, 65_535, 5 * MEGABYTE, 30 * MEGABYTE])
async def test_message_of_any_size_goes_both_ways(serve: Serve, size: int) -> None:
    running = await serve(HANDLERS)
    data = os.urandom(size)
    assert await running.unary_unary("Echo")(data, timeout=30) == data


async def test_streams_of_messages_of_any_size(serve: Serve) -> None:
    running = await serve(HANDLERS)
    sent = [os.urandom(size) for size in (0, 1, 5 * MEGABYTE, 0, 100_000, 3)]
    call = running.stream_stream("EchoEach")(iter(sent), timeout=30)
    assert [answer async for answer in call] == sent


async def test_many_small_messages_of_a_stream(serve: Serve) -> None:
    running = await serve(HANDLERS)
    sent = [b"%d" % index for index in range(500)]
    call = running.stream_stream("EchoEach")(iter(sent), timeout=30)
    assert [answer async for answer in call] == sent


async def test_large_messages_at_once(serve: Serve) -> None:
    running = await serve(HANDLERS)
    sent = [os.urandom(2 * MEGABYTE) for _ in range(8)]
    answers = await asyncio.gather(*(running.unary_unary("Echo")(data, timeout=30) for data in sent))
    assert answers == sent


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [0, 100, 10 * MEGABYTE])
async def test_compressed_requests_are_read(serve: Serve, compression: grpc.Compression, size: int) -> None:
    running = await serve(HANDLERS)
    data = b"compressible " * (size // 13)
    assert await running.unary_unary("Echo")(data, compression=compression, timeout=30) == data
    call = running.stream_stream("EchoEach")(iter([data, b"x", data]), compression=compression, timeout=30)
    assert [answer async for answer in call] == [data, b"x", data]


async def all_of(call: Any) -> list[bytes]:
    return [answer async for answer in call]


async def rests(count: list[int]) -> int:
    """Wait until ``count`` has not grown for a while; return how many it has."""
    seen = -1
    async with asyncio.timeout(SECONDS):
        while seen != len(count):
            seen = len(count)
            await asyncio.sleep(0.3)
    return seen


async def test_slow_reader_holds_the_handler_back(serve: Serve) -> None:
    made: list[int] = []
    total = 1600  # 100 MiB

    async def pour(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for index in range(total):
            made.append(index)
            yield bytes(65_536)

    running = await serve({"Pour": grpc.unary_stream_rpc_method_handler(pour)})
    call = running.unary_stream("Pour")(b"", timeout=30)
    assert len(await call.read()) == 65_536
    ahead = await rests(made)
    assert ahead < total // 2
    for _ in range(total - 1):
        assert len(await call.read()) == 65_536
    assert await call.read() is EOF
    assert len(made) == total


async def test_slow_handler_holds_the_caller_back(serve: Serve) -> None:
    go = asyncio.Event()
    total = 1600
    written: list[int] = []

    async def sip(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await go.wait()
        return b"%d" % sum([len(request) async for request in requests])

    running = await serve({"Sip": grpc.stream_unary_rpc_method_handler(sip)})
    call = running.stream_unary("Sip")(timeout=30)

    async def write() -> None:
        for index in range(total):
            await call.write(bytes(65_536))
            written.append(index)
        await call.done_writing()

    writing = asyncio.create_task(write())
    assert await rests(written) < total // 2
    go.set()
    await writing
    assert await call == b"%d" % (total * 65_536)


async def test_slow_handler_does_not_hold_other_rpcs_back(serve: Serve) -> None:
    async def sip(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    running = await serve(HANDLERS | {"Sip": grpc.stream_unary_rpc_method_handler(sip)})
    call = running.stream_unary("Sip")(timeout=30)
    written: list[int] = []

    async def write() -> None:
        for index in range(1600):
            await call.write(bytes(65_536))
            written.append(index)

    writing = asyncio.create_task(write())
    await rests(written)
    assert await running.unary_unary("Echo")(b"quick", timeout=SECONDS) == b"quick"
    writing.cancel()
    call.cancel()


async def test_handler_that_writes_from_two_tasks_fails(own: Serve) -> None:
    async def burst(request: bytes, context: Any) -> None:
        await asyncio.gather(*(context.write(bytes(MEGABYTE)) for _ in range(16)))

    running = await own({"Burst": grpc.unary_stream_rpc_method_handler(burst)})
    call = running.unary_stream("Burst")(b"", timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await all_of(call)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


async def test_connection_of_a_gone_client_is_forgotten(own: Serve) -> None:
    running = await own(HANDLERS)
    await running.unary_unary("Echo")(b"", timeout=SECONDS)
    assert len(running.server._calls.connections) == 1
    await running.channel.close()
    async with asyncio.timeout(SECONDS):
        await until(lambda: not running.server._calls.connections)
    assert not running.server._calls.tasks
