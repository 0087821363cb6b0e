"""Envoy's admin interface on a Unix socket: telling clients to leave before Envoy ends."""

from __future__ import annotations

import asyncio
from typing import Final

LEAVE_SECONDS: Final = 0.15
"""What a client that asks again and again needs to read that it should leave, and to do so."""
_ASK_SECONDS: Final = 1.0


async def drain(socket: str) -> bool:
    """Have Envoy close its ports and end each connection with its next answer; give clients time to leave.

    Without it a client that keeps its connection is cut in the middle of a request. How many there are is not
    known, for Envoy keeps no statistics here.

    Args:
        socket: path of its admin interface.

    Returns:
        Whether Envoy did so; it may have ended already.
    """
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            await _post(socket, "/drain_listeners?graceful&skip_exit")  # answers say `connection: close`
            await _post(socket, "/drain_listeners")
    except (OSError, TimeoutError):
        return False
    await asyncio.sleep(LEAVE_SECONDS)
    return True


async def _post(socket: str, path: str) -> None:
    """Send a request without a body and wait for the end of its answer."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        head = (f"POST {path} HTTP/1.1", "host: admin", "connection: close", "content-length: 0", "", "")
        writer.write("\r\n".join(head).encode())
        await reader.read()
    finally:
        writer.close()
