"""Operation over REST: liveness paths that every family probes, metrics, and what the routes are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from headrace.server.codecs.openapi import page
from headrace.server.errors import HeadraceError, ServerDrainingError, status_of
from headrace.server.services.call import Call, HttpReply
from headrace.server.telemetry.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from headrace.server.repository.model import Model


class OpsService:
    """Facade of ``headrace.rest.v1.OpsService``.

    Args:
        metrics: what ``GET /metrics`` renders.
        serving: whether the server takes requests (it is started and not draining).
        describe: makes the OpenAPI document; called once, in a thread.
        resolve: finds a ready model by its name, or raises.
    """

    def __init__(
        self,
        metrics: Metrics,
        serving: Callable[[], bool],
        describe: Callable[[], bytes],
        resolve: Callable[[str], Model],
    ) -> None:
        self._metrics = metrics
        self._serving = serving
        self._describe = describe
        self._resolve = resolve
        self._document = b""

    async def Health(self, request: Message, call: Call) -> HttpReply:
        """Answer 200 with an empty body while the server takes requests, else 503.

        Below a model's URL the model has to be there (404) and ready (503).
        """
        if self._serving():
            if call.model_id:
                self._resolve(call.model_id)
            return HttpReply(b"", content_type="text/plain")
        msg = "unhealthy"
        raise ServerDrainingError(msg)

    async def Metrics(self, request: Message, call: Call) -> HttpReply:
        """Answer the Prometheus text exposition."""
        return HttpReply(self._metrics.render(), content_type=CONTENT_TYPE)

    async def DescribeApi(self, request: Message, call: Call) -> HttpReply:
        """Answer an OpenAPI 3.1 document of all REST routes."""
        return HttpReply(await self._described())

    async def ShowApi(self, request: Message, call: Call) -> HttpReply:
        """Answer the same as a page of HTML that needs nothing else."""
        shown = page(orjson.loads(await self._described()))
        return HttpReply(shown, content_type="text/html; charset=utf-8")

    async def _described(self) -> bytes:
        if not self._document:
            self._document = await asyncio.to_thread(self._describe)
        return self._document

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer in the shape that TGI's and TEI's health probes have."""
        body = orjson.dumps({"error": error.message, "error_type": "healthcheck"})
        return HttpReply(body, status=status_of(error).http)
