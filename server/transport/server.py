"""The server: where it listens, and how it stops. It stands where ``grpc.aio.Server`` does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from headrace.server.transport.calls import Calls
from headrace.server.transport.connection import Connection
from headrace.server.transport.receiving import BUFFER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNIX: Final = "unix:"
_ANY: Final = "0.0.0.0"  # noqa: S104 - compared; as with gRPC's library it stands for IPv6's addresses too
_ENDED_SECONDS: Final = 10.0
"""How long connections may take to close, and handlers that are cancelled to end."""
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of addresses that this machine lacks: ``localhost`` is one of IPv6 too, where that is off."""


class Server:
    """A gRPC server on the running event loop.

    Args:
        shared_port: lets other processes listen on its TCP ports too.
    """

    def __init__(self, *, shared_port: bool = False) -> None:
        self._shared = shared_port
        self._calls = Calls()
        self._sockets: list[socket.socket] = []
        self._files: list[Path] = []
        self._servers: list[asyncio.Server] = []
        self._buffer = memoryview(bytearray(BUFFER))
        self._now = asyncio.Event()

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]
    ) -> None:
        """Answer with these handlers too; of several that know a method the first wins."""
        self._calls.add(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Take what generated code registers a second time, for servers that look methods up by name."""

    def add_insecure_port(self, address: str) -> int:
        """Bind ``host:port`` (0 for any port) or ``unix:path``; return the port, for a path 1.

        Raises:
            RuntimeError: it cannot be bound.
        """
        try:
            if address.startswith(_UNIX):
                return self._bind_path(Path(address.removeprefix(_UNIX)))
            return self._bind_port(address)
        except (OSError, OverflowError, ValueError) as error:
            raise RuntimeError(f"cannot listen on {address}: {error}") from None

    async def start(self) -> None:
        """Begin to answer."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append(
                await create(
                    lambda: Connection(self._calls, self._buffer), sock=sock, backlog=socket.SOMAXCONN
                )
            )
        self._sockets.clear()

    async def stop(self, grace: float | None) -> None:
        """Take no new RPCs, and end.

        Args:
            grace: seconds that running RPCs have to finish; then they end with UNAVAILABLE. None is 0. A call
                while another waits shortens its wait.
        """
        self._calls.stopping = True
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._servers.clear()
        self._sockets.clear()
        self._files.clear()
        connections = self._calls.connections
        for connection in list(connections):
            connection.drain()
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._calls.finished(self._now)
        self._now.set()
        for connection in list(connections):
            connection.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDED_SECONDS):
                await self._calls.left()
                if self._calls.tasks:
                    await asyncio.wait(self._calls.tasks)

    def _bind_path(self, path: Path) -> int:
        if path.is_socket():  # of a server that has ended without removing it
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        self._files.append(path)
        return 1

    def _bind_port(self, address: str) -> int:
        host, _, number = address.rpartition(":")
        host, port = host.strip("[]"), int(number)
        if host == _ANY and socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # the kernel may lack IPv6 all the same
                return self._bind_port(f"[::]:{port}")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        bound: list[socket.socket] = []
        missing: OSError | None = None
        for family, kind, protocol, _, place in dict.fromkeys(found):
            try:
                sock = self._bound(family, kind, protocol, (place[0], port, *place[2:]))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    for other in bound:
                        other.close()
                    raise
                missing = error
                continue
            bound.append(sock)
            port = sock.getsockname()[1]  # of all addresses of the name
        if missing is not None and not bound:
            raise missing
        self._sockets += bound
        return port

    def _bound(self, family: int, kind: int, protocol: int, place: tuple[Any, ...]) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
            sock.bind(place)
        except (OSError, OverflowError):
            sock.close()
            raise
        return sock
