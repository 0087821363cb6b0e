"""``grpc.health.v1``: the server, every service and every model by name; Check and Watch.

Names: "" is readiness (all models loaded, not draining), ``headrace.live`` is liveness (what Envoy checks),
a service's full name follows readiness or its own rule, a model's name follows that model. Unknown names are
NOT_FOUND, and SERVICE_UNKNOWN to a watcher, as the health protocol says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from headrace.server.repository.model import Model
    from headrace.server.transport.server import Server

    Serves = Callable[[Sequence[Model]], bool]
LIVENESS: Final = "headrace.live"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # Any to the type checker
    """Keeps the health service's states. A watcher that does not read holds up nobody: it misses states.

    Args:
        services: full name of every service → whether it serves with the models that are ready; None for a
            service that follows readiness.
    """

    def __init__(self, services: Mapping[str, Serves | None]) -> None:
        self._services = {"": None, **services}
        self._models: set[str] = set()
        self._states: dict[str, health_pb2.HealthCheckResponse.ServingStatus] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def register(self, server: Server | grpc.aio.Server) -> None:
        """Add the service to ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def live(self, *, alive: bool) -> None:
        """Set liveness."""
        self._set(LIVENESS, serving=alive)

    def update(self, *, ready: bool, models: Mapping[str, bool], loaded: Sequence[Model] = ()) -> None:
        """Set readiness of the server, its services and each model; models that are gone become unknown.

        Args:
            ready: whether the server is.
            models: name → whether a version is ready.
            loaded: the models that are ready.
        """
        for name, serves in self._services.items():
            self._set(name, serving=ready if serves is None else serves(loaded))
        for name in self._models - models.keys():
            del self._states[name]
            self._tell(name)
        for name, serving in models.items():
            self._set(name, serving=serving)
        self._models = set(models)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answer a state."""
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service '{request.service}'")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer a state, and again whenever it has changed since the last answer."""
        name = request.service
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(name, set())
        watchers.add(changed)
        last = None
        try:
            while True:
                changed.clear()
                state = self._states.get(name, _SERVICE_UNKNOWN)
                if state != last:
                    last = state
                    yield health_pb2.HealthCheckResponse(status=state)
                await changed.wait()
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(name) is watchers:
                del self._watchers[name]

    def _set(self, name: str, *, serving: bool) -> None:
        self._states[name] = _SERVING if serving else _NOT_SERVING
        self._tell(name)

    def _tell(self, name: str) -> None:
        for changed in self._watchers.get(name, ()):
            changed.set()
