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
    """TLS on the REST listener.

    Args:
        certificate: path of the PEM certificate chain.
        private_key: path of the PEM private key.
        client_ca: path of the PEM bundle that client certificates are checked against. Given, every client
            must present a certificate (mutual TLS); absent, none is asked for.
        client_crl: path of a PEM revocation list for client certificates; needs ``client_ca``.
        password_file: path of a file that holds the password of an encrypted ``private_key``.
        minimum: lowest protocol version, "1.2" or "1.3".
    """

    certificate: str
    private_key: str
    client_ca: str | None = None
    client_crl: str | None = None
    password_file: str | None = None
    minimum: str = "1.2"

    def __post_init__(self) -> None:
        """Refuse what Envoy would only refuse at start.

        Raises:
            ValueError: an unknown version, or a revocation list without a client CA.
        """
        if self.minimum not in {"1.2", "1.3"}:
            raise ValueError(f'tls.minimum must be "1.2" or "1.3", got {self.minimum!r}')
        if self.client_crl and not self.client_ca:
            raise ValueError(
                "tls.client_crl needs tls.client_ca: without it no client certificate is asked for"
            )


@dataclass(frozen=True, slots=True)
class BootstrapOptions:
    """The choices of one Envoy bootstrap.

    Args:
        upstream_socket: path of the Unix socket on which the gRPC server listens, at most 103 bytes.
        upstream_address: "host:port" of the gRPC server, for an Envoy elsewhere; this or the socket.
        listen_host: address to bind: an IPv4 or IPv6 address, or "localhost" for 127.0.0.1.
        listen_port: TCP port of REST, native gRPC and gRPC-Web; 0 lets the system choose.
        metrics_port: TCP port that serves ``GET /metrics`` and nothing else, 0 as above; none by default.
        admin_socket: path of a Unix socket for Envoy's admin interface; off by default, never on TCP, because
            whoever reaches it can stop Envoy.
        max_body_bytes: largest request or response body of a transcoded call in bytes; above it 413. Native
            gRPC messages are bounded by the server instead.
        cors_allow_origins: origins that browsers may call from, exact or ``*``; empty: no CORS headers.
        allow_model_header: let callers choose a model with their own ``x-headrace-model`` header.
        access_log: one JSON line per request on Envoy's standard output.
        tls: certificates; none: plain text.
    """

    upstream_socket: str = ""
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
        if bool(self.upstream_socket) == bool(self.upstream_address):
            raise ValueError("either upstream_socket or upstream_address says where the server is")
        if self.upstream_address and not re.fullmatch(r".+:\d{1,5}", self.upstream_address):
            raise ValueError(f"upstream_address must be host:port, got {self.upstream_address!r}")
        for path in (self.upstream_socket, self.admin_socket):
            if path is not None and len(path.encode()) > MAX_SOCKET_PATH:
                raise ValueError(
                    f"a Unix socket path may have {MAX_SOCKET_PATH} bytes, {path!r} has {len(path.encode())}"
                )

    @property
    def address(self) -> str:
        """The address to bind, as Envoy wants it: never a name."""
        return "127.0.0.1" if self.listen_host == "localhost" else self.listen_host
