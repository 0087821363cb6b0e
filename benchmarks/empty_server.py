"""The floor of one Python process: a grpc.aio server whose handler does nothing."""

from __future__ import annotations

import asyncio
import contextlib
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks.child import Child

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


class EmptyServer(Child):
    """A process that answers ModelInfer with the same message each time. Use as a context manager."""

    def __init__(self, answer: bytes) -> None:
        """Start it; ``answer`` is a serialised ModelInferResponse of the size that the real server sends."""
        super().__init__(_serve, answer)
        self.address = f"127.0.0.1:{self.hello}"


def _serve(connection: Connection, answer: bytes) -> None:
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_answer_until_closed(connection, answer))


async def _answer_until_closed(connection: Connection, answer: bytes) -> None:
    import grpc

    from headrace.kserve.v2 import grpc_service_pb2 as pb

    message = pb.ModelInferResponse.FromString(answer)

    async def handle(_: Any, __: Any) -> Any:
        return message

    service, _, method = METHOD.removeprefix("/").partition("/")
    server = grpc.aio.server()
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
