"""Native gRPC and gRPC-Web through Envoy, streams, and what happens when either side goes away."""

from __future__ import annotations

import base64
import http.client
import socket
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from waiting import block_until

from headrace.rest.v1 import tei_pb2, tei_pb2_grpc

HttpBody = httpbody_pb2.HttpBody
SECONDS = 20.0


@pytest.fixture
def channel(gateway: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.envoy.port}") as opened:
        yield opened


def embed(channel: grpc.Channel, size: int = 3, **metadata: str) -> Any:
    stub = tei_pb2_grpc.TeiServiceStub(channel)
    request = tei_pb2.TeiServiceEmbedRequest(body=HttpBody(content_type="x/y", data=bytes(size)))
    named = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    return stub.Embed.with_call(request, metadata=named, timeout=SECONDS)


def test_native_unary_call(channel: grpc.Channel) -> None:
    reply, call = embed(channel, x_give_answer="yes")
    assert b'"size": 3, "content_type": "x/y"' in reply.data
    assert ("answer", "yes") in call.initial_metadata()


def test_native_call_of_a_facade_that_sets_a_status(channel: grpc.Channel) -> None:
    reply, call = embed(channel, x_give_x_http_status="422", x_want_body="1")
    assert (call.code(), reply.data) == (grpc.StatusCode.OK, bytes(3))


def test_native_call_cannot_set_internal_headers(channel: grpc.Channel) -> None:
    reply, _ = embed(channel, x_headrace_model="m", x_headrace_surface="oicm")
    assert b"x-headrace" not in reply.data


def test_native_status_and_message(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        embed(channel, x_want_abort="RESOURCE_EXHAUSTED")
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 'said "no" to ü')


def test_native_unknown_method_and_health(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="headrace.live")
    assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    nowhere = channel.unary_unary("/a.b.C/D", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        nowhere(b"", timeout=SECONDS)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def test_native_stream(gateway: Any, channel: grpc.Channel) -> None:
    gateway.proceed()
    events = channel.unary_stream("/gateway.test.v1.EchoService/Events", bytes, HttpBody.FromString)
    assert [event.data for event in events(b"", timeout=SECONDS)] == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize("text", [False, True])
def test_grpc_web_unary(gateway: Any, text: bool) -> None:
    message = tei_pb2.TeiServiceEmbedRequest(body=HttpBody(data=b"abc")).SerializeToString()
    frame = struct.pack(">BI", 0, len(message)) + message
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    body = base64.b64encode(frame) if text else frame
    path = "/headrace.rest.v1.TeiService/Embed"
    reply = gateway.ask("POST", path, body=body, content_type=kind, accept=kind, x_want_body="1")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("application/grpc-web")
    quads = range(0, len(reply.body), 4)  # several padded texts, one after the other
    answer = b"".join(base64.b64decode(reply.body[at : at + 4]) for at in quads) if text else reply.body
    flag, size = struct.unpack(">BI", answer[:5])
    assert flag == 0
    assert HttpBody.FromString(answer[5 : 5 + size]).data == b"abc"
    assert answer[5 + size] == 0x80
    assert b"grpc-status:0" in answer[5 + size + 5 :]


def test_events_arrive_one_by_one(own_gateway: Any) -> None:
    connection = own_gateway.connection()
    connection.request("POST", "/models/m/proxy/test/events", body=b"{}")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert "content-length" not in answer.headers
    assert answer.read1() == b"data: 1\n\n"  # the second does not exist yet
    own_gateway.proceed()
    assert answer.read() == b"data: 2\n\n"
    connection.close()


def test_stream_sets_its_status(own_gateway: Any) -> None:
    own_gateway.proceed()
    reply = own_gateway.ask("POST", "/test/events", body=b"{}", x_give_x_http_status="429")
    assert (reply.status, reply.body) == (429, b"data: 1\n\ndata: 2\n\n")
    assert "x-http-status" not in reply.headers


def test_caller_who_leaves_cancels_the_rpc(own_gateway: Any) -> None:
    with socket.create_connection(("127.0.0.1", own_gateway.envoy.port), timeout=SECONDS) as peer:
        peer.sendall(b"GET /test/wait HTTP/1.1\r\nhost: h\r\n\r\n")
        assert own_gateway.echo.started.wait(SECONDS)
        assert not own_gateway.echo.cancelled.is_set()
    assert own_gateway.echo.cancelled.wait(SECONDS)


def test_grpc_timeout_of_a_rest_caller(own_gateway: Any) -> None:
    reply = own_gateway.ask("GET", "/test/wait", grpc_timeout="50m")
    assert reply.status == 504
    assert own_gateway.echo.cancelled.wait(SECONDS)


def test_server_that_goes_and_comes_back(own_gateway: Any) -> None:
    assert own_gateway.ask("GET", "/health").status == 200
    own_gateway.call(own_gateway.stop_server)
    text = "the inference server cannot be reached: no healthy upstream"
    reply = own_gateway.ask("GET", "/health")
    assert (reply.status, reply.json) == (503, {"error": text, "error_type": "unavailable"})
    assert reply.headers["retry-after"] == "1"
    reply = own_gateway.ask("GET", "/models/m/proxy/v1/models")
    expected = {"message": text, "type": "ServiceUnavailableError", "param": None, "code": 503}
    assert (reply.status, reply.json) == (503, {"error": expected})
    with grpc.insecure_channel(f"127.0.0.1:{own_gateway.envoy.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            embed(channel)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "{" not in error.details()
    own_gateway.call(own_gateway.start_server)
    block_until(lambda: own_gateway.ask("GET", "/health").status == 200)


def test_unhealthy_server_keeps_its_running_requests(own_gateway: Any) -> None:
    connection: http.client.HTTPConnection = own_gateway.connection()
    connection.request("POST", "/test/events", body=b"{}")
    answer = connection.getresponse()
    assert answer.read1() == b"data: 1\n\n"
    own_gateway.set_live(alive=False)
    block_until(lambda: own_gateway.ask("GET", "/health").status == 503)
    own_gateway.proceed()
    assert answer.read() == b"data: 2\n\n"
    connection.close()
    own_gateway.set_live(alive=True)
    block_until(lambda: own_gateway.ask("GET", "/health").status == 200)


def test_http_2_with_prior_knowledge_serves_rest(gateway: Any) -> None:
    """A REST request by hand over HTTP/2: the preface, SETTINGS and one HEADERS frame."""
    literal = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (
            (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/health"), (b":authority", b"h"),
        )
    )  # fmt: skip
    headers = len(literal).to_bytes(3, "big") + b"\x01\x05" + (1).to_bytes(4, "big") + literal
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=SECONDS) as peer:
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + headers)
        received = b""
        while b"OpsService.Health" not in received:
            part = peer.recv(65536)
            assert part, received
            received += part
