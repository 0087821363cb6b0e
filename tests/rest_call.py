"""Calling a REST facade's method through the interceptor that surrounds it in the server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from headrace.server.interceptors import Interceptors
from headrace.server.telemetry.requests import RequestMetrics


class Context:
    """The part of grpc's context that the interceptors and :class:`Call` use."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self._headers = tuple((headers or {}).items())
        self.sent: dict[str, str] = {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._headers

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        self.sent |= dict(metadata)

    def status(self) -> int:
        """The HTTP status that was sent; takes it out of the headers."""
        return int(self.sent.pop("x-http-status", "200"))


async def post_streamed(
    service: Any,
    rpc: str,
    body: Any,
    *,
    protocol: str = "test",
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, list[bytes], dict[str, str], str]:
    """Call a method that may stream, with a JSON body: bytes as they are, anything else encoded.

    Returns:
        Status, the pieces of the answer, its headers, its content type.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    context: Any = Context(headers)
    handle = Interceptors(RequestMetrics()).facade_stream(protocol, rpc, getattr(service, rpc), service)
    request: Any = SimpleNamespace(body=HttpBody(content_type=content_type, data=data))
    replies = [reply async for reply in handle(request, context)]
    status = context.status()
    return status, [reply.data for reply in replies], context.sent, replies[0].content_type
