"""Servers on loopback, ours and grpcio's, with handlers of bytes; clients are real ones or raw_peer's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
import pytest
import uvloop
from unit.transport.raw_peer import SECONDS, Peer, raw_peer
from waiting import until

from headrace.server.transport.server import Server

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
KINDS: Mapping[str, Callable[[], Any]] = {
    "own": Server,
    "grpcio": lambda: grpc.aio.server(options=(*UNLIMITED, ("grpc.so_reuseport", 0))),
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the server runs on, and where the loop's own part is looked at closely asyncio's too."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in {"test_transport_windows", "test_transport_goaway", "test_transport_hostile"}:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined] # the stubs lack it


def channel_to(address: str, *options: tuple[str, Any]) -> Any:
    """A client; its type would ask for serialisers, which bytes need not have."""
    return grpc.aio.insecure_channel(address, options=(*UNLIMITED, *options))


@dataclass
class Running:
    """A server that runs, and a channel to it."""

    server: Any
    address: str
    channel: Any

    def unary_unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/t.T/{name}")

    def unary_stream(self, name: str) -> Any:
        return self.channel.unary_stream(f"/t.T/{name}")

    def stream_unary(self, name: str) -> Any:
        return self.channel.stream_unary(f"/t.T/{name}")

    def stream_stream(self, name: str) -> Any:
        return self.channel.stream_stream(f"/t.T/{name}")


class Serve(Protocol):
    """Starts a server: methods of ``t.T`` by name, each one of ``grpc.*_rpc_method_handler``."""

    async def __call__(
        self, handlers: Mapping[str, Any] | None = None, address: str = "127.0.0.1:0", **more: Any
    ) -> Running: ...


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts a server of either kind; all are stopped in the end."""
    running: list[Running] = []

    async def begin(
        kind: str,
        handlers: Mapping[str, Any] | None = None,
        address: str = "127.0.0.1:0",
        register: Callable[[Any], None] | None = None,
    ) -> Running:
        server = KINDS[kind]()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", dict(handlers or {})),))
        if register is not None:
            register(server)
        port = server.add_insecure_port(address)
        await server.start()
        target = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        running.append(Running(server, target, channel_to(target)))
        return running[-1]

    yield begin
    for one in running:
        await one.channel.close()
        await one.server.stop(0)


@pytest.fixture(params=list(KINDS))
def serve(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Serve:
    """Starts a server of one kind, then the same test runs with the other."""
    return partial(start, request.param)


@pytest.fixture
def own(start: Callable[..., Any]) -> Serve:
    """Starts one of ours."""
    return partial(start, "own")


async def echo(request: bytes, context: Any) -> bytes:
    return bytes(request)


async def echo_each(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield bytes(request)


class Gate:
    """A handler that waits until it is let through, and counts how often it was cancelled."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.handlers = {
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Echo": grpc.unary_unary_rpc_method_handler(echo),
            "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
        }

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.running += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return bytes(request)

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            await until(lambda: self.running == count)


@pytest.fixture
async def peer(own: Serve) -> AsyncIterator[Peer]:
    """A raw connection to a server of ours that echoes: one message, or each of a stream."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "EchoEach": grpc.stream_stream_rpc_method_handler(echo_each),
    }
    running = await own(handlers)
    async with raw_peer(running.address) as connected:
        yield connected


async def failed(call: Any) -> grpc.aio.AioRpcError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
