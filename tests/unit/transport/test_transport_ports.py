"""Where a server listens: the same of our server and of grpcio's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.transport.conftest import KINDS, Serve, channel_to, echo
from unit.transport.raw_peer import SECONDS

from headrace.server.transport.server import Server

pytestmark = pytest.mark.timeout(60)
HANDLERS = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}


async def test_port_0_is_any_port(serve: Serve) -> None:
    running = await serve(HANDLERS)
    assert int(running.address.rpartition(":")[2]) > 0
    assert await running.unary_unary("Echo")(b"x", timeout=SECONDS) == b"x"


async def test_unix_socket_is_served_and_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    running = await serve(HANDLERS, f"unix:{path}")
    assert await running.unary_unary("Echo")(b"x", timeout=SECONDS) == b"x"
    assert path.is_socket()
    await running.server.stop(0)
    assert not path.exists()


async def test_unix_socket_that_a_dead_server_left_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    running = await serve(HANDLERS, f"unix:{path}")
    assert await running.unary_unary("Echo")(b"x", timeout=SECONDS) == b"x"


@pytest.fixture(params=list(KINDS))
async def server(request: pytest.FixtureRequest) -> Any:
    make: Callable[[], Any] = KINDS[request.param]
    return make()


async def test_file_that_is_no_socket_is_not_removed(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(RuntimeError):
        server.add_insecure_port(f"unix:{path}")
    assert path.read_text() == "data"


async def test_path_in_no_folder_is_an_error(server: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        server.add_insecure_port(f"unix:{tmp_path}/missing/grpc.sock")


async def test_taken_port_is_an_error(serve: Serve, server: Any) -> None:
    running = await serve(HANDLERS)
    with pytest.raises(RuntimeError):
        server.add_insecure_port(running.address)
    assert await running.unary_unary("Echo")(b"x", timeout=SECONDS) == b"x"


@pytest.mark.parametrize("address", ["127.0.0.1:port", "192.0.2.1:0", "no.invalid.:0"])
async def test_address_that_cannot_be_had_is_an_error(server: Any, address: str) -> None:
    with pytest.raises(RuntimeError):
        server.add_insecure_port(address)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1", "127.0.0.1:"])
async def test_address_without_a_port_is_an_error(address: str) -> None:
    with pytest.raises(RuntimeError):
        Server().add_insecure_port(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
async def test_hosts_of_ipv4_are_reached_on_loopback(own: Serve, host: str) -> None:
    running = await own(HANDLERS, f"{host}:0")
    port = running.address.rpartition(":")[2]
    async with channel_to(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=SECONDS) == b"x"


def found(*addresses: tuple[int, str]) -> Callable[..., Any]:
    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if ":" in address else (address, port))
            for family, address in addresses
        ]

    return resolve


async def test_name_with_an_address_that_the_machine_lacks_is_bound_to_its_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    with monkeypatch.context() as patched:
        patched.setattr(
            socket, "getaddrinfo", found((socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1"))
        )
        port = server.add_insecure_port("localhost:0")
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await server.stop(0)


async def test_name_of_which_one_address_is_taken_is_bound_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server()
        with monkeypatch.context() as patched:
            patched.setattr(
                socket, "getaddrinfo", found((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
            )
            with pytest.raises(RuntimeError, match="cannot listen"):
                server.add_insecure_port(f"localhost:{port}")
        assert server._sockets == []  # one left open would be warned of
    await server.stop(0)


async def test_two_servers_share_a_port_if_both_want_to(own: Serve) -> None:
    first, second = Server(shared_port=True), Server(shared_port=True)
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    await first.stop(0)
    second.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", HANDLERS),))
    await second.start()
    async with channel_to(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=SECONDS) == b"x"
    await second.stop(0)
