"""The floor of one Python process: a server whose handler does nothing, unless told otherwise grpc.aio's."""

from __future__ import annotations

import asyncio
import contextlib
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from benchmarks.child import Child

if TYPE_CHECKING:
    from headrace.server.config import GrpcTransport

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


class EmptyServer(Child):
    """A process that answers ModelInfer with the same message each time. Use as a context manager."""

    def __init__(self, answer: bytes, transport: GrpcTransport | None = None) -> None:
        """Start it.

        Args:
            answer: a serialised ModelInferResponse of the size that the real server sends.
            transport: serve as the real server does with this setting; None for grpc.aio as it comes.
        """
        super().__init__(_serve, answer, transport)
        self.address = f"127.0.0.1:{self.hello}"


def _serve(connection: Connection, answer: bytes, transport: GrpcTransport | None) -> None:
    import uvloop

    if transport is not None:
        from headrace.server.cli import choose_poller

        choose_poller()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_answer_until_closed(connection, answer, transport))


async def _answer_until_closed(
    connection: Connection, answer: bytes, transport: GrpcTransport | None
) -> None:
    import grpc

    from headrace.kserve.v2 import grpc_service_pb2 as pb
    from headrace.server.serving import grpc_server, settle_memory

    message = pb.ModelInferResponse.FromString(answer)

    async def handle(_: Any, __: Any) -> Any:
        return message

    service, _, method = METHOD.removeprefix("/").partition("/")
    server: Any = grpc.aio.server()
    if transport is not None:
        settle_memory()
        server = grpc_server(transport, tls=False)
    handler = grpc.unary_unary_rpc_method_handler(
        handle, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection.send(port)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(connection.fileno(), closed.set)
    await closed.wait()
    await server.stop(0)
