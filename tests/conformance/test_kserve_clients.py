"""What Triton's own Python clients see of a running server; each runs as a program of its own (clients/)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from running import ServerProcess

CLIENTS = Path(__file__).parent / "clients"
UNKNOWN = "Request for unknown model: 'nope' is not found"
MISSING = (
    "[request id: x] expected 2 inputs but got 1 inputs for model 'addsub'. Got input(s) ['INPUT0'], but "
    "missing required input(s) ['INPUT1']. Please provide all required input(s)."
)
CLASSES = [["30:15:label15", "28:14:label14"], ["62:15:label15", "60:14:label14"]]
INDEX = [
    {"name": "addsub", "version": "1", "state": "READY"},
    {"name": "multiv", "version": "1", "state": "READY"},
    {"name": "multiv", "version": "3", "state": "READY"},
]


def run(program: str, address: str) -> dict[str, Any]:
    """Run a client and return what it printed."""
    done = subprocess.run(
        [sys.executable, CLIENTS / program, address], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def metadata(*shape: object) -> dict[str, Any]:
    tensors = {
        kind: [{"name": f"{kind}{n}", "datatype": "INT32", "shape": list(shape)} for n in (0, 1)]
        for kind in ("INPUT", "OUTPUT")
    }
    return {
        "name": "addsub",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": tensors["INPUT"],
        "outputs": tensors["OUTPUT"],
    }


def shape_error(tensor: str) -> str:
    return (
        f"[request id: <id_unknown>] unexpected shape for input '{tensor}' for model 'addsub'. Expected "
        "[-1,16], got [2,8]. NOTE: Setting a non-zero max_batch_size"
    )


@pytest.fixture(scope="module")
def over_grpc(server: ServerProcess) -> dict[str, Any]:
    return run("triton_grpc.py", server.grpc)


@pytest.fixture(scope="module")
def over_http(server: ServerProcess) -> dict[str, Any]:
    return run("triton_http.py", server.http)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("live", True),
        ("ready", True),
        ("model ready", [True, True, False, False]),
        ("server metadata", "headrace"),
        ("model metadata", metadata("-1", "16")),
        ("versions", ["1", "3"]),
        ("config", {"name": "addsub", "backend": "onnxruntime", "max_batch_size": 64}),
        ("infer", ["r1", "1", True, True]),
        ("classification", CLASSES),
        ("compressed", True),
        ("parameters", True),
        ("sequence parameters", True),
        ("async", [None, True]),
        ("stream", [["0", True, True], UNKNOWN, ["2", True, True], ["3", True, True]]),
        ("statistics grow by", 2),
        ("index", INDEX),
        (
            "after unload",
            [
                False,
                ["StatusCode.NOT_FOUND", "Request for unknown model: 'id_int16' has no available versions"],
                True,
            ],
        ),
        ("after load", [True, True]),
        ("load unknown", "StatusCode.NOT_FOUND"),
        (
            "text model",
            [
                [2, 384],
                True,
                1.0,
                [
                    "StatusCode.INVALID_ARGUMENT",
                    (
                        "element 1 of input 'text' for model 'minilm' is not UTF-8 text: invalid start byte "
                        "at byte 0"
                    ),
                ],
            ],
        ),
    ],
)
def test_grpc(over_grpc: dict[str, Any], key: str, expected: object) -> None:
    assert over_grpc[key] == expected


def test_grpc_datatypes(over_grpc: dict[str, Any]) -> None:
    assert len(over_grpc["datatypes"]) == 13
    assert all(over_grpc["datatypes"].values()), over_grpc["datatypes"]


@pytest.mark.parametrize(
    ("case", "code", "text"),
    [
        ("unknown model", "NOT_FOUND", UNKNOWN),
        ("metadata", "NOT_FOUND", UNKNOWN),
        ("statistics", "INVALID_ARGUMENT", "requested model 'nope' is not available"),
        ("shape", "INVALID_ARGUMENT", shape_error("INPUT0")),
        ("shared memory", "UNIMPLEMENTED", "system shared memory is not offered by this server"),
    ],
)
def test_grpc_errors(over_grpc: dict[str, Any], case: str, code: str, text: str) -> None:
    found_code, found_text = over_grpc["errors"][case]
    assert found_code == f"StatusCode.{code}"
    assert found_text.startswith(text)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("live", True),
        ("ready", True),
        ("model ready", [True, True, False, False]),
        ("server metadata", "headrace"),
        ("model metadata", metadata(-1, 16)),
        ("config", ["addsub", 64, [16], "onnxruntime_onnx"]),
        ("fp16", True),
        ("identified", ["r1", "1"]),
        ("classification", CLASSES),
        ("async", [True] * 4),
        ("statistics grow by", 2),
        ("index", INDEX),
        (
            "after unload",
            [False, ["404", "Request for unknown model: 'id_uint16' has no available versions"]],
        ),
        ("after load", True),
        ("load unknown", "404"),
    ],
)
def test_http(over_http: dict[str, Any], key: str, expected: object) -> None:
    assert over_http[key] == expected


@pytest.mark.parametrize(("key", "count"), [("infer", 6), ("compression", 9), ("datatypes", 7)])
def test_http_forms(over_http: dict[str, Any], key: str, count: int) -> None:
    """Binary and JSON both ways, every compression both ways, every datatype both ways."""
    assert len(over_http[key]) == count
    assert all(value in (True, [True, True]) for value in over_http[key].values()), over_http[key]


@pytest.mark.parametrize(
    ("case", "status", "text"),
    [
        ("unknown model", "404", UNKNOWN),
        ("metadata", "404", UNKNOWN),
        ("statistics", "400", "requested model 'nope' is not available"),
        ("shape", "400", shape_error("INPUT1")),
    ],
)
def test_http_errors(over_http: dict[str, Any], case: str, status: str, text: str) -> None:
    found_status, found_text = over_http["errors"][case]
    assert found_status == status
    assert found_text.startswith(text)


def test_grpc_asyncio(server: ServerProcess) -> None:
    seen = run("triton_grpc_aio.py", server.grpc)
    assert seen == {
        "ready": [True, False],
        "infer": [2 * value for value in range(50)],
        "stream": [UNKNOWN if number == 3 else [str(number), 2 * number] for number in range(20)],
        "stream cancelled": True,
        "error": ["StatusCode.INVALID_ARGUMENT", MISSING],
        "deadline": "StatusCode.DEADLINE_EXCEEDED",
        "after the deadline": 8,
    }


def test_http_asyncio(server: ServerProcess) -> None:
    seen = run("triton_http_aio.py", server.http)
    assert seen == {
        "ready": [True, False],
        "infer": [2 * value for value in range(50)],
        "error": ["400", MISSING],
        "statistics": "addsub",
    }


def test_grpc_client_through_the_rest_port(server: ServerProcess) -> None:
    """Envoy passes gRPC on, so that one port is enough."""
    assert run("triton_grpc_aio.py", server.http)["infer"] == [2 * value for value in range(50)]
