"""The gRPC server of a process: its options, its services, and where it listens."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from headrace.server.services import registry
from headrace.server.transport.server import Server

if TYPE_CHECKING:
    from headrace.server.config import GrpcTransport
    from headrace.server.services.health import Health, Serves

GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # tensors of any size, as Triton takes them
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 128 * 1024),  # Envoy admits 60 KiB of headers; grpc's own default is 8 KiB
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 300_000),
    ("grpc.max_concurrent_streams", 1_000_000),
)
GC_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects between collections: requests leave few cycles, and the default of 700 costs more than it frees."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BLOCK: Final = 32 << 20
"""Blocks of more bytes go back to the kernel at once: the most that the C library comes to by itself."""
_KEPT_BYTES: Final = 64 << 20
"""Free memory at the end of the heap that is kept."""


AnyServer = Server | grpc.aio.Server
"""What answers RPCs: both take the same handlers (decision 0026)."""


def grpc_server(transport: GrpcTransport, *, tls: bool, shared_port: bool = False) -> AnyServer:
    """Return a server without services.

    Args:
        transport: whose HTTP/2 it speaks.
        tls: whether it shall listen with certificates; gRPC's own library does that.
        shared_port: lets other processes listen on its TCP ports too.
    """
    if transport == "asyncio" and not tls:
        return Server(shared_port=shared_port)
    return grpc.aio.server(options=(*GRPC_OPTIONS, ("grpc.so_reuseport", int(shared_port))))


def service_health() -> dict[str, Serves | None]:
    """Return the full name of every service, and how its health follows from the models that are ready."""
    return {entry.descriptor.full_name: entry.serves for entry in registry.SERVICES}


def add_services(
    server: AnyServer, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]], health: Health
) -> None:
    """Add handlers, health and reflection to ``server``; of several that know a method the first wins."""
    server.add_generic_rpc_handlers(tuple(handlers))
    health.register(server)
    own = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
    names = [*service_health(), "grpc.health.v1.Health", own]
    # What enables reflection looks at the server's class, and takes ours for one with threads.
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), server)


def settle_memory() -> None:
    """Prepare the process for requests.

    The collector is spared what lives from here on until the end: it need not be walked again and again. And
    memory that large requests gave back is kept for the next ones: by default the C library returns it to the
    kernel between two of them, and every page of it has to be found and cleared again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    # other C libraries than GNU's may not have it
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
