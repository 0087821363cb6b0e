"""Operation over REST: liveness paths that every family probes, and the Prometheus exposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from headrace.server.errors import HeadraceError, ServerDrainingError, status_of
from headrace.server.services.call import Call, HttpReply
from headrace.server.telemetry.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message


class OpsService:
    """Facade of ``headrace.rest.v1.OpsService``.

    Args:
        metrics: what ``GET /metrics`` renders.
        serving: whether the server takes requests (it is started and not draining).
    """

    def __init__(self, metrics: Metrics, serving: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._serving = serving

    async def Health(self, request: Message, call: Call) -> HttpReply:
        """Answer 200 with an empty body while the server takes requests, else 503."""
        if self._serving():
            return HttpReply(b"", content_type="text/plain")
        msg = "unhealthy"
        raise ServerDrainingError(msg)

    async def Metrics(self, request: Message, call: Call) -> HttpReply:
        """Answer the Prometheus text exposition."""
        return HttpReply(self._metrics.render(), content_type=CONTENT_TYPE)

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer in the shape that TGI's and TEI's health probes have."""
        body = orjson.dumps({"error": error.message, "error_type": "healthcheck"})
        return HttpReply(body, status=status_of(error).http)
