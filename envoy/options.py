"""What a deployment may choose about Envoy; everything else follows from the protos."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

DEFAULT_MAX_BODY_BYTES: Final = 64 * 1024 * 1024

#: Largest request headers, in KiB and in lines; more is answered 431.
MAX_HEADERS_KB: Final = 60
MAX_HEADERS: Final = 200

#: Linux and macOS refuse longer paths in ``sockaddr_un``; the smaller of the two, without the final NUL.
MAX_SOCKET_PATH: Final = 103


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS, 1.2 or newer, on the REST listener; the metrics port stays plain.

    Args:
        secrets: path of the folder with the files of :func:`headrace.envoy.tls.secrets`. They must be there
            when Envoy starts, and one that another is moved onto is read again.
        client_auth: every client must present a certificate (mutual TLS), and the folder says whose.
    """

    secrets: str
    client_auth: bool = False


@dataclass(frozen=True, slots=True)
class BootstrapOptions:
    """The choices of one Envoy bootstrap.

    Args:
        upstream_socket: path of the Unix socket on which the gRPC server listens, at most 103 bytes.
        upstream_sockets: the same of several processes, each of which can answer every request; in place of
            ``upstream_socket``.
        upstream_address: "host:port" of the gRPC server, for an Envoy elsewhere; this or sockets.
        listen_host: address to bind: an IPv4 or IPv6 address, or "localhost" for 127.0.0.1.
        listen_port: TCP port of REST, native gRPC and gRPC-Web; 0 lets the system choose.
        metrics_port: TCP port that serves ``GET /metrics`` and nothing else, 0 as above; none by default.
        admin_socket: path of a Unix socket for Envoy's admin interface; off by default, never on TCP, because
            whoever reaches it can stop Envoy.
        max_body_bytes: largest request or response body of a transcoded call in bytes; above it 413. Native
            gRPC messages are not bounded, neither here nor by the server.
        cors_allow_origins: origins that browsers may call from, exact or ``*``; empty: no CORS headers.
        allow_model_header: let callers choose a model with their own ``x-headrace-model`` header.
        access_log: one JSON line per request on Envoy's standard output.
        tls: where the certificates are; none: plain text.
    """

    upstream_socket: str = ""
    upstream_sockets: tuple[str, ...] = ()
    upstream_address: str = ""
    listen_host: str = "127.0.0.1"
    listen_port: int = 8000
    metrics_port: int | None = None
    admin_socket: str | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    cors_allow_origins: tuple[str, ...] = ()
    allow_model_header: bool = False
    access_log: bool = False
    tls: TlsOptions | None = None

    def __post_init__(self) -> None:
        """Refuse what Envoy would only refuse at start.

        Raises:
            ValueError: a host name that is not an address, a port, size or socket path out of range, or not
                exactly one place where the server is.
        """
        try:
            ipaddress.ip_address(self.address)
        except ValueError as error:
            raise ValueError(
                f"listen_host must be an IP address or 'localhost', got {self.listen_host!r}"
            ) from error
        for name, port in (("listen_port", self.listen_port), ("metrics_port", self.metrics_port)):
            if port is not None and not 0 <= port <= 65535:
                raise ValueError(f"{name} must be 0..65535, got {port}")
        if not 1 <= self.max_body_bytes < 2**32:
            raise ValueError(f"max_body_bytes must be 1..4294967295, got {self.max_body_bytes}")
        places = (self.upstream_socket, self.upstream_sockets, self.upstream_address)
        if sum(map(bool, places)) != 1:
            raise ValueError(
                "either upstream_socket or upstream_address says where the server is, or upstream_sockets"
            )
        if self.upstream_address and not re.fullmatch(r".+:\d{1,5}", self.upstream_address):
            raise ValueError(f"upstream_address must be host:port, got {self.upstream_address!r}")
        for path in (*self.sockets, self.admin_socket):
            if path is not None and len(path.encode()) > MAX_SOCKET_PATH:
                raise ValueError(
                    f"a Unix socket path may have {MAX_SOCKET_PATH} bytes, {path!r} has {len(path.encode())}"
                )

    @property
    def sockets(self) -> tuple[str, ...]:
        """Paths of all Unix sockets of the server; none for one that is elsewhere."""
        return (self.upstream_socket,) if self.upstream_socket else self.upstream_sockets

    @property
    def address(self) -> str:
        """The address to bind, as Envoy wants it: never a name."""
        return "127.0.0.1" if self.listen_host == "localhost" else self.listen_host
