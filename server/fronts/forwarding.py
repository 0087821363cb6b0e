"""RPCs about the server as a whole: a front hands them to the core as they are.

What reads counters needs those of all fronts, and what changes the repository is the core's to do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, bytes]

_KSERVE: Final = "/inference.GRPCInferenceService/"
_REST: Final = "/headrace.rest.v1.KserveService/"

COUNTERS: Final = frozenset(
    {
        f"{_KSERVE}ModelStatistics",
        f"{_REST}ModelStatistics",
        "/headrace.rest.v1.OpsService/Metrics",
        "/headrace.rest.v1.VllmService/Load",
    }
)
"""Read what all fronts have counted."""

CHANGES: Final = frozenset(
    {f"{service}RepositoryModel{change}" for service in (_KSERVE, _REST) for change in ("Load", "Unload")}
)
"""Change what all fronts serve."""

FORWARDED: Final = (
    COUNTERS
    | CHANGES
    | {f"{_KSERVE}RepositoryIndex", f"{_REST}RepositoryIndex", "/headrace.v1.GenerationService/Abort"}
)

_OWN_METADATA: Final = ("user-agent", "te", "content-type")


def forwarding(channel: grpc.aio.Channel) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Return handlers of the forwarded methods; they stand before the services that would answer here.

    Args:
        channel: to the core.
    """
    methods: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path in sorted(FORWARDED):
        _, service, name = path.split("/")
        call = channel.unary_unary(path, request_serializer=None, response_deserializer=None)
        methods.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(_forward(call))
    return [grpc.method_handlers_generic_handler(service, found) for service, found in methods.items()]


def _forward(
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes],
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def forward(request: bytes, context: Context) -> bytes:
        metadata = tuple(
            (key, value)
            for key, value in context.invocation_metadata() or ()
            if not key.startswith(("grpc-", ":")) and key not in _OWN_METADATA
        )
        call = method(bytes(request), metadata=metadata, timeout=context.time_remaining())
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", _pairs(error.trailing_metadata()))
        headers = _pairs(await call.initial_metadata())
        if headers:
            await context.send_initial_metadata(headers)
        context.set_trailing_metadata(_pairs(await call.trailing_metadata()))
        return response

    return forward


def _pairs(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(metadata or ())


class Around(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only
    """The core's side of forwarded RPCs: they see what the fronts counted, and the fronts what they changed.

    Args:
        handlers: of a service.
        collect: adds up what all fronts have counted.
        settled: waits until all fronts know the changes of the repository.
    """

    def __init__(
        self,
        handlers: grpc.GenericRpcHandler[Any, Any],
        collect: Callable[[], Awaitable[None]],
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._handlers = handlers
        self._collect = collect
        self._settled = settled

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, with what has to be done before and after."""
        handler = self._handlers.service(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in COUNTERS | CHANGES:
            return handler
        behaviour: Any = handler.unary_unary

        async def collecting(request: Any, context: Any) -> Any:
            await self._collect()
            return await behaviour(request, context)

        async def settling(request: Any, context: Any) -> Any:
            try:
                return await behaviour(request, context)
            finally:
                await self._settled()

        around = collecting if method in COUNTERS else settling
        return grpc.unary_unary_rpc_method_handler(
            around, handler.request_deserializer, handler.response_serializer
        )
