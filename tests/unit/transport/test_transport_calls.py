"""RPCs as callers see them: the same of our server and of grpcio's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer
from unit.transport.conftest import EOF, Serve, echo, echo_each
from unit.transport.raw_peer import SECONDS

pytestmark = pytest.mark.timeout(60)


async def repeat(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for index in range(3):
        yield bytes(request) + b"%d" % index


async def write_itself(request: bytes, context: Any) -> None:
    await context.write(b"first")
    await context.write(request)


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"+".join([bytes(request) async for request in requests])


HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
    "WriteItself": grpc.unary_stream_rpc_method_handler(write_itself),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
}


async def test_unary_request_gets_one_answer(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.unary_unary("Echo")(b"hello", timeout=SECONDS)
    assert await call == b"hello"
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""


async def test_unary_request_gets_a_stream_of_answers(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.unary_stream("Repeat")(b"n", timeout=SECONDS)
    assert [answer async for answer in call] == [b"n0", b"n1", b"n2"]
    assert await call.code() is grpc.StatusCode.OK


async def test_handler_writes_its_answers_itself(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.unary_stream("WriteItself")(b"second", timeout=SECONDS)
    assert [answer async for answer in call] == [b"first", b"second"]


async def test_stream_of_requests_gets_one_answer(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.stream_unary("Join")(iter([b"a", b"", b"c"]), timeout=SECONDS)
    assert await call == b"a++c"


async def test_stream_of_no_requests_gets_an_answer(serve: Serve) -> None:
    running = await serve(HANDLERS)
    assert await running.stream_unary("Join")(iter([]), timeout=SECONDS) == b""


async def test_two_streams_take_turns(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.stream_stream("EchoEach")(timeout=SECONDS)
    for word in (b"one", b"two", b"three"):
        await call.write(word)
        assert await call.read() == word
    await call.done_writing()
    assert await call.read() is EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_stream_without_answers_ends_well(serve: Serve) -> None:
    running = await serve(HANDLERS)
    call = running.stream_stream("EchoEach")(iter([]), timeout=SECONDS)
    assert [answer async for answer in call] == []
    assert await call.code() is grpc.StatusCode.OK


async def test_answer_before_the_requests_have_ended(serve: Serve) -> None:
    async def first(requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for request in requests:
            return bytes(request)
        return b"none"

    running = await serve({"First": grpc.stream_unary_rpc_method_handler(first)})
    call = running.stream_unary("First")(timeout=SECONDS)
    await call.write(b"now")
    assert await call == b"now"


async def test_blocking_client_in_a_thread(serve: Serve) -> None:
    running = await serve(HANDLERS)

    def run() -> tuple[Any, list[Any], Any]:
        channel: Any
        with grpc.insecure_channel(running.address) as channel:
            one = channel.unary_unary("/t.T/Echo")(b"one", timeout=SECONDS)
            many = list(channel.stream_stream("/t.T/EchoEach")(iter([b"a", b"b"]), timeout=SECONDS))
            joined = channel.stream_unary("/t.T/Join")(iter([b"a", b"b"]), timeout=SECONDS)
            return one, many, joined

    assert await asyncio.to_thread(run) == (b"one", [b"a", b"b"], b"a+b")


async def test_serialisers_of_the_handler_are_used(serve: Serve) -> None:
    async def double(request: int, context: Any) -> int:
        return 2 * request

    handler = grpc.unary_unary_rpc_method_handler(double, int, lambda number: str(number).encode())
    running = await serve({"Double": handler})
    assert await running.unary_unary("Double")(b"21", timeout=SECONDS) == b"42"


@pytest.mark.parametrize("path", ["/t.T/Unknown", "/other.Service/Echo"])
async def test_unknown_method_is_unimplemented(serve: Serve, path: str) -> None:
    running = await serve(HANDLERS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary(path)(b"", timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "Method not found!"
    call = running.channel.stream_stream(path)(timeout=SECONDS)
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_handlers_added_first_win(serve: Serve) -> None:
    async def other(request: bytes, context: Any) -> bytes:
        return b"other"

    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(other),
        "More": grpc.unary_unary_rpc_method_handler(other),
    }

    def register(server: Any) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    running = await serve(HANDLERS, register=register)
    assert await running.unary_unary("Echo")(b"first", timeout=SECONDS) == b"first"
    assert await running.unary_unary("More")(b"first", timeout=SECONDS) == b"other"


async def test_200_rpcs_run_at_once_on_one_channel(serve: Serve) -> None:
    met = asyncio.Barrier(200)

    async def meet(request: bytes, context: Any) -> bytes:
        await met.wait()
        return bytes(request)

    running = await serve({"Meet": grpc.unary_unary_rpc_method_handler(meet)})
    calls = [running.unary_unary("Meet")(b"%d" % index, timeout=30) for index in range(200)]
    assert await asyncio.gather(*calls) == [b"%d" % index for index in range(200)]


async def test_health_is_checked_and_watched(serve: Serve) -> None:
    health = HealthServicer()
    running = await serve(
        register=lambda server: health_pb2_grpc.add_HealthServicer_to_server(health, server)
    )
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    watch = stub.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=SECONDS)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await health.set("x", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_reflection_lists_services_and_files(serve: Serve) -> None:
    servicer = ReflectionServicer(["grpc.health.v1.Health"])
    running = await serve(
        register=lambda server: reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    )
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
    ]
    listed, found, missing = [one async for one in stub.ServerReflectionInfo(iter(requests), timeout=SECONDS)]
    assert [one.name for one in listed.list_services_response.service] == ["grpc.health.v1.Health"]
    assert found.file_descriptor_response.file_descriptor_proto
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
