"""A real gRPC server behind a real Envoy, in this process: the server echoes what Envoy gave it."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc_tools
import pytest
from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_tools import protoc

from headrace.envoy.descriptors import discover
from headrace.envoy.options import BootstrapOptions
from headrace.server.proxy import EnvoyProcess

DATA = Path(__file__).parent / "data"
LIVE = "headrace.live"
HttpBody = httpbody_pb2.HttpBody
SECONDS = 20.0


def echo_services(folder: Path) -> tuple[ServiceDescriptor, ...]:
    """The services of echo.proto, compiled now."""
    output = folder / "echo.pb"
    google = Path(annotations_pb2.__file__).parents[2]
    status = protoc.main([
        "protoc", f"-I{DATA}", f"-I{google}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"--descriptor_set_out={output}", str(DATA / "echo.proto"),
    ])  # fmt: skip
    assert status == 0
    pool = descriptor_pool.Default()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    pool.AddSerializedFile(file.SerializeToString())
    return (pool.FindServiceByName("gateway.test.v1.EchoService"),)


class Echo:
    """Handlers that answer what they were given; request headers ``x-want-…`` ask for more."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.proceed: asyncio.Event = asyncio.Event()

    async def unary(self, request: Any, context: Any, name: str) -> Any:
        """Answer of every unary facade RPC: a description of the request, or the body that came."""
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        if "x-want-abort" in metadata:
            await context.abort(grpc.StatusCode[metadata["x-want-abort"]], 'said "no" to ü')
        await give(context)
        body = getattr(request, "body", HttpBody())
        if "x-want-body" in metadata:
            return HttpBody(content_type="application/octet-stream", data=body.data)
        fields = {field.name: value for field, value in request.ListFields() if field.name != "body"}
        answer = {
            "rpc": name, "fields": fields, "metadata": metadata, "size": len(body.data),
            "content_type": body.content_type,
        }  # fmt: skip
        return HttpBody(content_type="application/json", data=json.dumps(answer).encode())

    async def typed(self, request: Any, context: Any, name: str) -> Any:
        """Answer of Typed: the request, or the error that its text names."""
        if request.text in grpc.StatusCode.__members__:
            await context.abort(grpc.StatusCode[request.text], 'said "no" to ü')
        return request

    async def wait(self, request: Any, context: Any, name: str) -> Any:
        """Wait for the caller to go away."""
        self.started.set()
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return HttpBody()

    async def events(self, request: Any, context: Any) -> Any:
        """Stream two events."""
        await give(context)
        yield HttpBody(content_type="text/event-stream", data=b"data: 1\n\n")
        await asyncio.wait_for(self.proceed.wait(), SECONDS)
        yield HttpBody(data=b"data: 2\n\n")

    def handlers(self, service: ServiceDescriptor) -> Any:
        """All methods of a service."""
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method) for method in service.methods}
        )

    def _handler(self, method: MethodDescriptor) -> Any:
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        codecs: dict[str, Any] = {
            "request_deserializer": request.FromString,
            "response_serializer": response.SerializeToString,
        }
        if method.name == "Events":
            return grpc.unary_stream_rpc_method_handler(self.events, **codecs)
        special = {"Typed": self.typed, "Wait": self.wait}
        answer = special.get(method.name, self.unary)

        async def unary(message: Any, context: Any) -> Any:
            return await answer(message, context, method.full_name)

        async def stream(message: Any, context: Any) -> Any:
            yield await answer(message, context, method.full_name)

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **codecs)
        return grpc.unary_unary_rpc_method_handler(unary, **codecs)


async def give(context: Any) -> None:
    """Send the initial metadata that the request asks for."""
    wanted = [(key[7:], value) for key, value in context.invocation_metadata() if key.startswith("x-give-")]
    if wanted:
        await context.send_initial_metadata(wanted)


class Gateway:
    """Server and Envoy, run by a thread of their own; tests talk to them as clients do."""

    def __init__(self, folder: Path, services: tuple[ServiceDescriptor, ...], **options: Any) -> None:
        self.folder = folder
        self.services = services
        self.failures: list[str] = []
        socket = str(folder / "grpc.sock")
        options.setdefault("cors_allow_origins", ("https://allowed.example",))
        self.options = BootstrapOptions(upstream_socket=socket, listen_port=0, **options)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.envoy = EnvoyProcess(
            self.options, services, runtime_dir=folder / "envoy", on_failure=self.failures.append
        )
        self.call(self.start_server)

    def call(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine function in the gateway's thread."""

        async def run() -> Any:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    async def start_server(self) -> None:
        """Start the gRPC server on its Unix socket."""
        self.echo = Echo()
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined] # its __init__ defines it later
        sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
        metadata = [("grpc.max_metadata_size", 1 << 17), ("grpc.absolute_max_metadata_size", 1 << 18)]
        self.server = grpc.aio.server(options=[*sizes, *metadata])
        self.server.add_generic_rpc_handlers([self.echo.handlers(service) for service in self.services])
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        await self.health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        self.server.add_insecure_port(f"unix:{self.options.upstream_socket}")
        await self.server.start()

    async def stop_server(self) -> None:
        """Stop the gRPC server at once."""
        await self.server.stop(0)

    def set_live(self, *, alive: bool) -> None:
        """What the server answers to Envoy's health checks."""
        state = health_pb2.HealthCheckResponse
        self.call(lambda: self.health.set(LIVE, state.SERVING if alive else state.NOT_SERVING))

    def proceed(self) -> None:
        """Let a stream of events go on."""
        self.loop.call_soon_threadsafe(self.echo.proceed.set)

    def close(self) -> None:
        """End everything."""
        self.call(self.envoy.stop)
        self.call(self.stop_server)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def connection(self) -> http.client.HTTPConnection:
        """A new HTTP/1.1 connection."""
        return http.client.HTTPConnection("127.0.0.1", self.envoy.port, timeout=SECONDS)

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; ``_`` in a header's name stands for ``-``."""
        connection = self.connection()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(verb, path, body=body, headers=named)
            return Reply(connection.getresponse())
        finally:
            connection.close()


class Reply:
    """A whole HTTP answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


GatewayMaker = Callable[..., Any]


@pytest.fixture(scope="session")
def gateway_services(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServiceDescriptor, ...]:
    """The server's REST services and the one of the tests."""
    return (*discover(), *echo_services(tmp_path_factory.mktemp("proto")))


@contextmanager
def opened(folder: Path, services: tuple[ServiceDescriptor, ...], **options: Any) -> Iterator[Gateway]:
    """A gateway with running server and Envoy."""
    gateway = Gateway(folder, services, **options)
    try:
        gateway.call(gateway.envoy.start)
        yield gateway
    finally:
        gateway.close()


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, gateway_services: tuple[ServiceDescriptor, ...]
) -> Iterator[Gateway]:
    """The gateway that tests share; it must not be broken."""
    with opened(tmp_path_factory.mktemp("gateway"), gateway_services, metrics_port=0) as shared:
        yield shared
        assert not shared.failures


@pytest.fixture
def own_gateway(tmp_path: Path, gateway_services: tuple[ServiceDescriptor, ...]) -> Iterator[Gateway]:
    """A gateway for one test, which may break it."""
    with opened(tmp_path, gateway_services) as own:
        yield own


@pytest.fixture
def make_gateway(tmp_path: Path, gateway_services: tuple[ServiceDescriptor, ...]) -> Callable[..., Any]:
    """Opens a gateway with other options."""

    def make(**options: Any) -> Any:
        return opened(tmp_path, gateway_services, **options)

    return make
