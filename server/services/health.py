"""``grpc.health.v1``: the server, every service and every model by name; Check and Watch.

Names: "" is readiness (all models loaded, not draining), ``headrace.live`` is liveness (what Envoy checks),
a service's full name follows readiness, a model's name follows that model. Unknown names are NOT_FOUND, and
SERVICE_UNKNOWN to a watcher, as the health protocol says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc

LIVENESS: Final = "headrace.live"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Keeps the health service's states.

    Args:
        services: full names of the services that follow readiness.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer = HealthServicer()
        self._followers = ("", *services)
        self._models: set[str] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def live(self, *, alive: bool) -> None:
        """Set liveness."""
        await self._servicer.set(LIVENESS, _SERVING if alive else _NOT_SERVING)

    async def update(self, *, ready: bool, models: dict[str, bool]) -> None:
        """Set readiness of the server and of each model; models that are gone become unknown."""
        for name in self._followers:
            await self._servicer.set(name, _SERVING if ready else _NOT_SERVING)
        for name in self._models - models.keys():
            await self._servicer.set(name, _SERVICE_UNKNOWN)
        for name, serving in models.items():
            await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)
        self._models = set(models)
