"""The KServe REST wire through Envoy: the table of Triton's answers, and every other path."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

import pytest
from conformance.kserve_tables import REST_CASES, Case, check_answer, for_a_server, request_body

if TYPE_CHECKING:
    from running import ServerProcess


def exchange(
    server: ServerProcess, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send exactly these headers (and the body's length), and return status, headers and body."""
    connection = http.client.HTTPConnection(server.http, timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("case", for_a_server(REST_CASES), ids=lambda case: case["name"])
def test_table(case: Case, server: ServerProcess) -> None:
    version = f"/versions/{case['version']}" if "version" in case else ""
    path = f"/v2/models/{case['model']}{version}/infer"
    check_answer(case, *exchange(server, "POST", path, request_body(case), case.get("headers")))


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/v2/health/live", 200, {"live": True}),
        ("GET", "/v2/health/ready", 200, {"ready": True}),
        ("GET", "/v2/models/addsub/ready", 200, {"name": "addsub", "ready": True}),
        ("GET", "/v2/models/addsub/versions/1/ready", 200, {"name": "addsub", "ready": True}),
        ("GET", "/v2/models/addsub/versions/2/ready", 400, {"error": "Model version not ready"}),
        ("GET", "/v2/models/nope/ready", 404, {"error": "Request for unknown model: 'nope' is not found"}),
        ("GET", "/v2/models/nope", 404, {"error": "Request for unknown model: 'nope' is not found"}),
        ("GET", "/v2/models/a%20b", 404, {"error": "Request for unknown model: 'a b' is not found"}),
        (
            "GET",
            "/v2/models/addsub/versions/9",
            404,
            {"error": "Request for unknown model: 'addsub' version 9 is not found"},
        ),
        ("GET", "/v2/models/nope/config", 404, {"error": "Request for unknown model: 'nope' is not found"}),
        ("GET", "/v2/models/nope/stats", 400, {"error": "requested model 'nope' is not available"}),
        (
            "GET",
            "/v2/models/addsub/versions/7/stats",
            400,
            {"error": "requested model version is not available for model 'addsub'"},
        ),
        ("POST", "/v2/repository/models/id_int8/load", 200, None),
        ("POST", "/v2/repository/models/never-was/unload", 200, None),
    ],
)
def test_paths(server: ServerProcess, method: str, path: str, status: int, expected: object) -> None:
    found, headers, body = exchange(server, method, path)
    assert (found, json.loads(body or b"null")) == (status, expected)
    assert headers["content-type"] == "application/json"


def test_metadata(server: ServerProcess) -> None:
    _, _, body = exchange(server, "GET", "/v2")
    document = json.loads(body)
    assert list(document) == ["name", "version", "extensions"]
    assert document["name"] == "headrace"
    assert "binary_tensor_data" in document["extensions"]


def test_model_list(server: ServerProcess) -> None:
    names = json.loads(exchange(server, "GET", "/v2/models")[2])["models"]
    assert {"addsub", "multiv", "id_fp32"} <= set(names)
    assert names == sorted(set(names))


def test_config_has_every_default(server: ServerProcess) -> None:
    document = json.loads(exchange(server, "GET", "/v2/models/addsub/config")[2])
    assert list(document)[:6] == [
        "name",
        "platform",
        "backend",
        "runtime",
        "version_policy",
        "max_batch_size",
    ]
    assert document["version_policy"] == {"latest": {"num_versions": 1}}
    assert document["max_batch_size"] == 64
    assert document["input"][0]["dims"] == [16]
    assert document["input"][0]["data_type"] == "TYPE_INT32"
    assert document["input"][0]["optional"] is False
    assert document["instance_group"][0]["name"] == "addsub_0"
    assert document["optimization"]["input_pinned_memory"] == {"enable": True}
    assert document["dynamic_batching"]["preferred_batch_size"] == [64]
    assert document["model_warmup"] == []


def test_statistics(server: ServerProcess) -> None:
    everything = json.loads(exchange(server, "GET", "/v2/models/stats")[2])["model_stats"]
    assert {"addsub", "multiv"} <= {entry["name"] for entry in everything}
    one = json.loads(exchange(server, "GET", "/v2/models/multiv/stats")[2])["model_stats"]
    assert [entry["version"] for entry in one] == ["1", "3"]
    assert isinstance(one[0]["inference_stats"]["success"]["ns"], int)


def test_index(server: ServerProcess) -> None:
    by_post = exchange(server, "POST", "/v2/repository/index")[2]
    assert by_post == exchange(server, "GET", "/v2/repository/index")[2]
    assert {"name": "addsub", "version": "1", "state": "READY"} in json.loads(by_post)
    ready = json.loads(exchange(server, "POST", "/v2/repository/index", b'{"ready":true}')[2])
    assert {entry["state"] for entry in ready} == {"READY"}


def test_chunked_body(server: ServerProcess) -> None:
    tensor = {"name": "INPUT0", "datatype": "INT8", "shape": [3], "data": [1, 2, 3]}
    body = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection(server.http, timeout=60)
    try:
        pieces = (body[start : start + 7] for start in range(0, len(body), 7))
        connection.request("POST", "/v2/models/id_int8/infer", pieces, encode_chunked=True)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert answer["outputs"][0]["data"] == [1, 2, 3]


def test_large_tensor(server: ServerProcess) -> None:
    """More than Envoy buffers by default, and more than fits one shared region of the usual size."""
    data = bytes(range(256)) * (16 * 2**10)
    path = "/v2/models/id_uint8/infer"
    status, headers, body = exchange(server, "POST", path, data, {"Inference-Header-Content-Length": "0"})
    assert status == 200
    assert body[int(headers["inference-header-content-length"]) :] == data


def test_unknown_query_parameters_are_ignored(server: ServerProcess) -> None:
    assert exchange(server, "GET", "/v2/models/addsub?x=1&y=2")[0] == 200
