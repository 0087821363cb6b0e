"""``grpc.health.v1``: the server, every service and every model by name; Check and Watch.

Names: "" is readiness (all models loaded, not draining), ``headrace.live`` is liveness (what Envoy checks),
a service's full name follows readiness or its own rule, a model's name follows that model. Unknown names are
NOT_FOUND, and SERVICE_UNKNOWN to a watcher, as the health protocol says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import grpc

    from headrace.server.repository.model import Model

    Serves = Callable[[Sequence[Model]], bool]
LIVENESS: Final = "headrace.live"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Keeps the health service's states.

    Args:
        services: full name of every service → whether it serves with the models that are ready; None for a
            service that follows readiness.
    """

    def __init__(self, services: Mapping[str, Serves | None]) -> None:
        self._servicer = HealthServicer()
        self._services = {"": None, **services}
        self._models: set[str] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def live(self, *, alive: bool) -> None:
        """Set liveness."""
        await self._servicer.set(LIVENESS, _SERVING if alive else _NOT_SERVING)

    async def update(self, *, ready: bool, models: dict[str, bool], loaded: Sequence[Model] = ()) -> None:
        """Set readiness of the server, its services and each model; models that are gone become unknown.

        Args:
            ready: whether the server is.
            models: name → whether a version is ready.
            loaded: the models that are ready.
        """
        for name, serves in self._services.items():
            serving = ready if serves is None else serves(loaded)
            await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)
        for name in self._models - models.keys():
            await self._servicer.set(name, _SERVICE_UNKNOWN)
        for name, serving in models.items():
            await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)
        self._models = set(models)
