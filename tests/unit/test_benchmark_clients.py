"""The benchmarks' own HTTP/2 and HTTP/1.1 clients, against servers that are not theirs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from benchmark_import import module

estimates = module("estimates")
http2_client = module("http2_client")
http_client = module("http_client")
load_job = module("load_job")

LARGE = bytes(range(256)) * 8192
"""2 MiB: many frames, and more than the windows that a connection begins with."""


def job(protocol: str, address: str, target: str, *bodies: bytes, clients: int = 1) -> Any:
    headers = (("x-probe", "yes"),)
    window = estimates.Window(0.0, 1.0)
    return load_job.Job(protocol, address, target, headers, bodies, (1.0,) * len(bodies), clients, window)


class GrpcServer:
    """A grpc.aio server that keeps what it was sent, answers twice as much, and refuses ``refuse``."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, str]] = []
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.unary_unary_rpc_method_handler(self.answer)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("probe.Probe", {"Ask": handler}),)
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def answer(self, body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        self.seen.append((body, metadata.get("x-probe", "")))
        if body == b"refuse":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        return body * 2


async def test_http2_calls_carry_bodies_of_any_size_and_metadata() -> None:
    server = GrpcServer()
    await server.server.start()
    bodies = (b"", b"small", LARGE, b"small again")
    async with http2_client.callers(job("grpc", server.address, "/probe.Probe/Ask", *bodies)) as (ask,):
        for body in bodies:
            await ask(body)
    await server.server.stop(None)
    assert server.seen == [(body, "yes") for body in bodies]


async def test_http2_connections_call_beside_each_other() -> None:
    server = GrpcServer()
    await server.server.start()
    task = job("grpc", server.address, "/probe.Probe/Ask", LARGE, b"b", clients=4)
    async with http2_client.callers(task) as asks:
        await asyncio.gather(*(ask(b"b") for ask in asks))
        await asyncio.gather(*(ask(LARGE) for ask in asks))
    await server.server.stop(None)
    assert [body for body, _ in server.seen] == [b"b"] * 4 + [LARGE] * 4


@pytest.mark.parametrize(("target", "body"), [("/probe.Probe/Ask", b"refuse"), ("/probe.Probe/None", b"x")])
async def test_http2_failed_calls_raise_and_the_connection_goes_on(target: str, body: bytes) -> None:
    server = GrpcServer()
    await server.server.start()
    async with http2_client.callers(job("grpc", server.address, target, body, b"good")) as (ask,):
        with pytest.raises(http_client.AnswerError, match="grpc-status"):
            await ask(body)
        if target.endswith("Ask"):
            await ask(b"good")
    await server.server.stop(None)


async def ask_for_ever(ask: Any) -> None:
    while True:
        await asyncio.wait_for(ask(b"x"), 10)


async def test_http2_notices_that_the_server_is_gone() -> None:
    server = GrpcServer()
    await server.server.start()
    async with http2_client.callers(job("grpc", server.address, "/probe.Probe/Ask", b"x")) as (ask,):
        await ask(b"x")
        await server.server.stop(None)
        # The connection may still take one more request before it sees the end.
        with pytest.raises(http_client.AnswerError):
            await ask_for_ever(ask)


async def http_server(answers: list[bytes]) -> tuple[asyncio.Server, list[bytes]]:
    """Answer each request on a connection with the next of ``answers``; keep what was asked."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            seen.append(head + await reader.readexactly(length))
            for start in range(0, len(answer), 7):  # in small pieces, cut anywhere
                writer.write(answer[start : start + 7])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    return await asyncio.start_server(serve, "127.0.0.1", 0), seen


async def test_http_requests_are_kept_alive_and_bodies_put_together() -> None:
    ok = b"HTTP/1.1 200 OK\r\nX-Other: 1\r\nContent-Length: 20\r\n\r\n" + b"0123456789" * 2
    server, seen = await http_server([ok, ok])
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with http_client.callers(job("http", address, "/v1/x", b"one", b"two")) as (ask,):
        assert await ask(b"one") == b"0123456789" * 2
        assert await ask(b"two") == b"0123456789" * 2
    server.close()
    assert seen[0] == (
        b"POST /v1/x HTTP/1.1\r\nhost: "
        + address.encode()
        + b"\r\nx-probe: yes\r\ncontent-length: 3\r\n\r\none"
    )
    assert seen[1].endswith(b"two")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", "404 not found: b'nope'"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncut off", "connection lost"),
    ],
)
async def test_http_bad_answers_raise(answer: bytes, problem: str) -> None:
    server, _ = await http_server([answer])
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with http_client.callers(job("http", address, "/", b"x")) as (ask,):
        with pytest.raises(http_client.AnswerError, match=problem):
            await ask(b"x")
    server.close()
