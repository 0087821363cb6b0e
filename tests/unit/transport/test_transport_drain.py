"""How a server stops: what runs is finished within the grace, what is new is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from unit.transport.conftest import EOF, Gate, Running, Serve, failed
from unit.transport.raw_peer import SECONDS
from waiting import until

from headrace.server.transport.server import Server

pytestmark = pytest.mark.timeout(60)


async def code_of(call: Any) -> grpc.StatusCode:
    code = (await failed(call)).code()
    assert isinstance(code, grpc.StatusCode)
    return code


@asynccontextmanager
async def draining(running: Running, gate: Gate) -> AsyncIterator[None]:
    """Have the server stop while an RPC runs; that one, and the stop, end with the context."""
    old = running.unary_unary("Wait")(b"old")
    await gate.holds(1)
    stopping = asyncio.create_task(running.server.stop(30))
    await asyncio.sleep(0.3)
    yield
    gate.go.set()
    assert await old == b"old"
    await stopping


async def test_running_rpcs_finish_within_the_grace(serve: Serve) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    calls = [running.unary_unary("Wait")(b"%d" % index) for index in range(5)]
    await gate.holds(5)
    stopping = asyncio.create_task(running.server.stop(30))
    await asyncio.sleep(0.1)
    assert not stopping.done()
    gate.go.set()
    assert await asyncio.gather(*calls) == [b"%d" % index for index in range(5)]
    async with asyncio.timeout(SECONDS):
        await stopping
    assert gate.cancelled == 0


async def test_streams_go_on_within_the_grace(serve: Serve) -> None:
    running = await serve(Gate().handlers)
    call = running.stream_stream("EchoEach")()
    await call.write(b"before")
    assert await call.read() == b"before"
    stopping = asyncio.create_task(running.server.stop(30))
    await asyncio.sleep(0.1)
    await call.write(b"while")
    assert await call.read() == b"while"
    await call.done_writing()
    assert await call.read() is EOF
    assert await call.code() is grpc.StatusCode.OK
    async with asyncio.timeout(SECONDS):
        await stopping


async def test_new_rpcs_of_a_draining_server_are_unavailable(serve: Serve) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    async with draining(running, gate):
        # The client connects anew, and nobody listens: of both servers.
        new = running.unary_unary("Echo")(b"new", timeout=SECONDS)
        assert await code_of(new) is grpc.StatusCode.UNAVAILABLE


async def test_new_rpcs_go_to_the_server_that_follows_on_the_port(serve: Serve) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    async with draining(running, gate):
        after = await serve(gate.handlers, running.address)
        assert after.address == running.address
        echo = running.unary_unary("Echo")
        calls = [echo(b"new", timeout=SECONDS, wait_for_ready=True) for _ in range(20)]
        assert await asyncio.gather(*calls) == [b"new"] * 20


async def test_what_runs_after_the_grace_is_unavailable_and_cancelled(serve: Serve) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    calls = [running.unary_unary("Wait")(b"x") for _ in range(3)]
    await gate.holds(3)
    async with asyncio.timeout(SECONDS):
        await running.server.stop(0.2)
    assert [await code_of(call) for call in calls] == [grpc.StatusCode.UNAVAILABLE] * 3
    async with asyncio.timeout(SECONDS):
        await until(lambda: gate.cancelled == 3)


@pytest.mark.parametrize("grace", [0, None])
async def test_stop_without_grace_ends_all_at_once(serve: Serve, grace: float | None) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    call = running.unary_unary("Wait")(b"x")
    await gate.holds(1)
    async with asyncio.timeout(SECONDS):
        await running.server.stop(grace)
    assert await code_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_a_second_stop_shortens_the_first(serve: Serve) -> None:
    gate = Gate()
    running = await serve(gate.handlers)
    call = running.unary_unary("Wait")(b"x")
    await gate.holds(1)
    first = asyncio.create_task(running.server.stop(3000))
    await asyncio.sleep(0.1)
    assert not first.done()
    async with asyncio.timeout(SECONDS):
        await running.server.stop(0)
        await first
    assert await code_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_idle_server_stops_at_once(serve: Serve) -> None:
    running = await serve(Gate().handlers)
    assert await running.unary_unary("Echo")(b"x", timeout=SECONDS) == b"x"
    began = time.monotonic()
    await running.server.stop(3000)
    assert time.monotonic() - began < SECONDS


async def test_stop_before_start_and_twice(own: Serve) -> None:
    server = Server()
    server.add_insecure_port("127.0.0.1:0")
    await server.stop(1)
    await server.stop(None)
    running = await own()
    await running.server.stop(0)
    await running.server.stop(1)


async def test_handler_that_refuses_to_end_is_waited_for(own: Serve) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def linger(request: bytes, context: Any) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            ended.set()
        return b""

    running = await own({"Linger": grpc.unary_unary_rpc_method_handler(linger)})
    call = running.unary_unary("Linger")(b"")
    await begun.wait()
    await running.server.stop(0)
    assert ended.is_set()
    assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
