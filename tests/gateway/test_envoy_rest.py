"""What a REST client sees of Envoy: statuses, errors, paths, bodies and headers."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from headrace.envoy.descriptors import bindings

MIB = 1024 * 1024
OPENAI_404 = {"error": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404}}
OTHER_404 = {"error": "Not Found", "error_type": "not_found"}
OPENAI_405 = {
    "error": {"message": "Method Not Allowed", "type": "MethodNotAllowedError", "param": None, "code": 405}
}
OTHER_405 = {"error": "Method Not Allowed", "error_type": "method_not_allowed"}


def sample_path(template: str) -> str:
    return re.sub(r"\{[^}]*\}", "m", template)


def test_every_binding_reaches_its_rpc(gateway: Any) -> None:
    own = [found for found in bindings(gateway.services) if found.rpc.startswith("/headrace.")]
    connection = gateway.connection()
    for binding in own:
        connection.request(binding.verb, sample_path(binding.template), body=b"{}" if binding.body else None)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, (binding, text)
        assert binding.rpc[1:].replace("/", ".").encode() in text
    connection.close()


def test_every_known_path_refuses_another_verb(gateway: Any) -> None:
    connection = gateway.connection()
    for binding in bindings(gateway.services):
        connection.request("PATCH", sample_path(binding.template))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 405, binding
        assert binding.verb in answer.headers["allow"].split(", "), binding
    connection.close()


@pytest.mark.parametrize(
    ("verb", "path", "status", "body"),
    [
        ("GET", "/nope", 404, OTHER_404),
        ("GET", "/v1/nope", 404, OPENAI_404),
        ("GET", "/models/m/proxy/nope", 404, OTHER_404),
        ("GET", "/models/m/proxy/v1/nope", 404, OPENAI_404),
        ("GET", "/models/m/proxyless/health", 404, OTHER_404),
        ("GET", "/models/m", 404, OTHER_404),
        ("POST", "/v2", 405, OTHER_405),
        ("POST", "/v2/", 405, OTHER_405),
        ("GET", "/v2/models/m/infer", 405, OTHER_405),
        ("PUT", "/v1/embeddings", 405, OPENAI_405),
        ("GET", "/models/m/proxy/v1/embeddings", 405, OPENAI_405),
        ("DELETE", "/models/m/proxy/embed", 405, OTHER_405),
        ("OPTIONS", "/health", 405, OTHER_405),
    ],
)
def test_unknown_paths_and_verbs(gateway: Any, verb: str, path: str, status: int, body: Any) -> None:
    reply = gateway.ask(verb, path)
    assert (reply.status, reply.json) == (status, body)
    assert reply.headers["content-type"] == "application/json"


def test_lindorm_paths_have_their_envelope(gateway: Any) -> None:
    reply = gateway.ask("GET", "/v1/ai/nope", x_request_id="r1")
    expected = {"code": 404, "msg": "Not Found", "data": None, "success": False, "request_id": "r1"}
    assert (reply.status, reply.json) == (404, expected)


def test_head_is_refused_where_get_is_served(gateway: Any) -> None:
    reply = gateway.ask("HEAD", "/v2/health/live")
    assert (reply.status, reply.body, reply.headers["allow"]) == (405, b"", "GET")


@pytest.mark.parametrize("status", ["201", "404", "422", "499", "503"])
def test_facade_sets_the_status(gateway: Any, status: str) -> None:
    reply = gateway.ask("POST", "/embed", body=b"abc", x_give_x_http_status=status, x_want_body="1")
    assert (reply.status, reply.body) == (int(status), b"abc")
    assert "x-http-status" not in reply.headers


@pytest.mark.parametrize("status", ["", "abc", "99", "100", "600", "4222"])
def test_nonsense_status_is_ignored(gateway: Any, status: str) -> None:
    reply = gateway.ask("POST", "/embed", body=b"abc", x_give_x_http_status=status, x_want_body="1")
    assert (reply.status, reply.body) == (200, b"abc")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/test/typed"])
@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        ("UNAUTHENTICATED", 401, "unauthenticated"),
        ("PERMISSION_DENIED", 403, "permission_denied"),
        ("RESOURCE_EXHAUSTED", 429, "resource_exhausted"),
        ("CANCELLED", 499, "cancelled"),
        ("DEADLINE_EXCEEDED", 504, "deadline_exceeded"),
    ],
)
def test_failed_rpc_has_an_error_body(gateway: Any, path: str, code: str, status: int, name: str) -> None:
    reply = gateway.ask("POST", path, body=b'{"text":"%s"}' % code.encode(), x_want_abort=code)
    assert (reply.status, reply.json) == (
        status, {"error": 'said "no" to ü', "details": [], "error_type": name},
    )  # fmt: skip
    assert int(reply.headers["content-length"]) == len(reply.body)


def test_typed_rpc(gateway: Any) -> None:
    assert gateway.ask("POST", "/test/typed", body=b'{"text":"a","else":1}').json == {
        "text": "a",
        "number": 0,
    }
    assert gateway.ask("GET", "/test/typed/a?number=7&else=1").json == {"text": "a", "number": 7}


def test_malformed_json_of_a_typed_rpc(gateway: Any) -> None:
    reply = gateway.ask("POST", "/test/typed", body=b'{"text":')
    assert reply.status == 400
    assert reply.json["error_type"] == "bad_request"
    assert reply.json["error"]


def test_malformed_path_says_why(gateway: Any) -> None:
    reply = gateway.ask("GET", "/v2/models/a%00b")
    assert reply.status == 400
    assert reply.json["error"]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/models/a%2Fb", "a/b"),
        ("/v2/models/a%20b", "a b"),
        ("/v2/models/a%2525", "a%25"),
        ("/v2/models/%C3%BC", "ü"),
        ("/v2/models/a+b", "a+b"),
        ("/v2/models/a@1", "a@1"),
        ("/v2/models/a:b", "a:b"),
        ("//v2///models//a", "a"),
        ("/v2/models/a/", "a"),
        ("/v2/models/x/../a", "a"),
        ("/v2/models/a?model=other", "a"),
        ("/v2/models/a?anything=1&version=9", "a"),
        ("/v1/models/a%2Fb", "a/b"),
        ("/v1/models/a/b", "a/b"),
    ],
)
def test_model_names_in_paths(gateway: Any, path: str, model: str) -> None:
    assert gateway.ask("GET", path).json["fields"] == {"model": model}


@pytest.mark.parametrize(
    ("path", "inner", "model"),
    [
        ("/models/m/proxy/v1/models", "/v1/models", "m"),
        ("/models/m/proxy/health", "/health", "m"),
        ("/models/m/proxy/vllm/v1/models", "/v1/models", "m"),
        ("/models/m/proxy/tgi/v1/models?a=b", "/v1/models?a=b", "m"),
        ("/models/m/proxy/v1/models?a=%20b&c=/proxy/", "/v1/models?a=%20b&c=/proxy/", "m"),
        ("/models/m/proxy", "/", "m"),
        ("/models/m/proxy/", "/", "m"),
        ("/models/m/proxy?a=b", "/?a=b", "m"),
        ("//models//m//proxy//v1//models", "/v1/models", "m"),
        ("/models/org%2Fm/proxy/health", "/health", "org/m"),
        ("/models/m@2/proxy/health", "/health", "m@2"),
        ("/models/a%20b/proxy/health", "/health", "a b"),
        ("/models/a%0D%0Ab/proxy/health", "/health", "a%0D%0Ab"),
        ("/models/%C3%BC/proxy/health", "/health", "%C3%BC"),
    ],
)
def test_proxy_prefix_selects_the_model(gateway: Any, path: str, inner: str, model: str) -> None:
    spoofed = {"x_headrace_model": "other", "x_headrace_surface": "other"}
    metadata = gateway.ask("GET", path, **spoofed).json["metadata"]
    assert metadata["x-envoy-original-path"] == inner
    assert (metadata["x-headrace-model"], metadata["x-headrace-surface"]) == (model, "oicm")


def test_internal_headers_from_outside_are_dropped(gateway: Any) -> None:
    headers = {"x_headrace_model": "m", "x_headrace_surface": "oicm", "x_envoy_original_path": "/v1/x"}
    metadata = gateway.ask("GET", "/health", **headers).json["metadata"]
    assert metadata["x-envoy-original-path"] == "/health"
    assert not [name for name in metadata if name.startswith("x-headrace-")]


def test_model_header_can_be_allowed(make_gateway: Any) -> None:
    with make_gateway(allow_model_header=True) as gateway:
        headers = {"x_headrace_model": "m", "x_headrace_surface": "oicm"}
        metadata = gateway.ask("GET", "/health", **headers).json["metadata"]
        assert metadata["x-headrace-model"] == "m"
        assert "x-headrace-surface" not in metadata
        assert (
            gateway.ask("GET", "/models/n/proxy/health", **headers).json["metadata"]["x-headrace-model"]
            == "n"
        )


def test_binary_body_and_its_headers_pass_both_ways(gateway: Any) -> None:
    body = b'{"inputs":[]}' + bytes(range(256))
    headers = {
        "inference_header_content_length": "13",
        "content_encoding": "gzip",
        "accept_encoding": "gzip, x",
    }
    seen = gateway.ask("POST", "/v2/models/m/infer", body=body, **headers).json
    assert (seen["size"], seen["fields"]) == (len(body), {"model": "m"})
    for name, value in headers.items():
        assert seen["metadata"][name.replace("_", "-")] == value
    given = {f"x_give_{name}": value for name, value in headers.items() if name != "accept_encoding"}
    reply = gateway.ask("POST", "/v2/models/m/infer", body=body, x_want_body="1", **given)
    assert reply.body == body
    assert reply.headers["inference-header-content-length"] == "13"
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.headers["content-type"] == "application/octet-stream"


def test_large_bodies(gateway: Any) -> None:
    body = bytes(60 * MIB)
    assert gateway.ask("POST", "/embed", body=body).json["size"] == 60 * MIB
    reply = gateway.ask("POST", "/embed", body=body, x_want_body="1")
    assert len(reply.body) == 60 * MIB


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_body(gateway: Any, chunked: bool) -> None:
    chunk = bytes(MIB)
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=20) as peer:
        size = "transfer-encoding: chunked" if chunked else f"content-length: {65 * MIB}"
        peer.sendall(f"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\n{size}\r\n\r\n".encode())
        try:
            for _ in range(65):
                peer.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
        except OSError:
            pass  # Envoy need not read what it has refused
        answer = peer.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"message":"the body exceeds the limit of 67108864 bytes"' in answer
    assert gateway.ask("GET", "/health").status == 200


def raw(gateway: Any, request: bytes) -> bytes:
    """The whole answer to hand-written bytes, after which Envoy closes the connection."""
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=20) as peer:
        peer.sendall(request)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def test_chunked_upload(gateway: Any) -> None:
    chunks = [b"a" * 1000, b"b" * 70_000]
    reply = gateway.ask("POST", "/embed", body=iter(chunks), x_want_body="1")
    assert reply.body == b"".join(chunks)


def test_http_1_0(gateway: Any) -> None:
    answer = raw(gateway, b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 "))
    assert b"transfer-encoding" not in answer


def test_expect_100_continue(gateway: Any) -> None:
    head = b"POST /embed HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=20) as peer:
        peer.sendall(head)
        assert peer.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"{}")
        assert peer.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_content_type_may_be_missing(gateway: Any) -> None:
    answer = raw(
        gateway, b"POST /embed HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert b'"size": 2, "content_type": ""' in answer


def test_long_headers_pass(gateway: Any) -> None:
    value = "v" * 50_000
    assert gateway.ask("GET", "/health", x_long=value).json["metadata"]["x-long"] == value
    assert gateway.ask("GET", "/health", x_long=value * 2).status == 431


@pytest.mark.parametrize("given", ["plain-text", "01234567-89ab-4def-8123-0123456789ab"])
def test_request_id_is_kept(gateway: Any, given: str) -> None:
    reply = gateway.ask("GET", "/health", x_request_id=given, x_give_x_request_id=given)
    assert reply.headers.get_all("x-request-id") == [given]
    assert reply.json["metadata"]["x-request-id"] == given


def test_request_id_is_made_where_there_is_none(gateway: Any) -> None:
    reply = gateway.ask("GET", "/health")
    (made,) = reply.headers.get_all("x-request-id")
    assert reply.json["metadata"]["x-request-id"] == made
    assert gateway.ask("GET", "/nope").headers["x-request-id"] not in {None, made}


def test_cors(gateway: Any) -> None:
    preflight = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,x-y",
    }
    reply = gateway.ask("OPTIONS", "/v1/embeddings", origin="https://allowed.example", **preflight)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://allowed.example"
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "authorization,*"
    reply = gateway.ask("GET", "/health", origin="https://allowed.example")
    assert reply.headers["access-control-allow-origin"] == "https://allowed.example"
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    assert gateway.ask("GET", "/v1/nope", origin="https://allowed.example").headers[
        "access-control-allow-origin"
    ]
    reply = gateway.ask("OPTIONS", "/v1/embeddings", origin="https://other.example", **preflight)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (405, None)


def test_metrics_port_serves_metrics_only(gateway: Any) -> None:
    import http.client

    answers = {}
    for path in ("/metrics", "/health", "/nope"):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.envoy.metrics_port, timeout=20)
        connection.request("GET", path)
        answers[path] = connection.getresponse().status
        connection.close()
    assert answers == {"/metrics": 200, "/health": 404, "/nope": 404}
