"""TCP ports: is one free, does one answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl


def free_port(address: str, port: int) -> int:
    """Return ``port`` if it can be bound, or one that can for 0.

    Args:
        address: IPv4 or IPv6 address to bind.
        port: 0..65535.

    Raises:
        OSError: the port is taken or may not be bound.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


async def answers(address: str, port: int, *, tls: bool = False) -> bool:
    """Whether somebody accepts connections on the port; a wildcard address is asked over loopback.

    With ``tls`` the question is whether it presents a certificate, be it whose it may.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 -- compared, not bound
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=_anyone() if tls else None)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
