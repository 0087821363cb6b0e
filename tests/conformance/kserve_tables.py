"""The tables of requests and answers on the KServe wires, and how an answer is compared with its case.

The tables follow what a real Triton answered; ``differs_from_triton`` says where and how this server is meant
to differ. ``in_process`` marks cases for which no model of a running server will do: unit tests run those.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

Case = dict[str, Any]

_DATA = Path(__file__).parent / "data"
GRPC_CASES: tuple[Case, ...] = tuple(json.loads((_DATA / "kserve-grpc-cases.json").read_text()))
REST_CASES: tuple[Case, ...] = tuple(json.loads((_DATA / "kserve-rest-cases.json").read_text()))


def for_a_server(cases: tuple[Case, ...]) -> list[Case]:
    """Leave out the cases that need a model of the test's own process."""
    return [case for case in cases if "in_process" not in case]


def request_message(case: Case) -> ModelInferRequest:
    """Build the request of a gRPC case."""
    message = ParseDict(case["request"], ModelInferRequest())
    for raw in case.get("raw", ()):
        message.raw_input_contents.append(bytes(raw) if isinstance(raw, int) else base64.b64decode(raw))
    return message


def check_message(case: Case, response: ModelInferResponse) -> None:
    """Compare the members that the case names."""
    answered = MessageToDict(response, preserving_proto_field_name=True)
    assert {key: answered[key] for key in case["response"]} == case["response"]


def check_error(case: Case, error: grpc.RpcError) -> None:
    """Compare status and text."""
    assert error.details() == case["text"]
    assert error.code().name == case["code"]


def request_body(case: Case) -> bytes:
    """Build the body of a REST case."""
    if "base64" in case:
        return base64.b64decode(case["base64"])
    if "repeated" in case:
        return "".join(text * count for text, count in case["repeated"]).encode()
    if "text" in case:
        return str(case["text"]).encode()
    return json.dumps(case["body"]).encode()


def check_answer(case: Case, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Compare a REST answer byte for byte; header names are in lower case."""
    assert status == case["status"], body
    assert headers.get("content-encoding") == case.get("encoding")
    if "encoding" in case:
        body = gzip.decompress(body) if case["encoding"] == "gzip" else zlib.decompress(body)
    size = headers.get("inference-header-content-length")
    assert (size is not None) == ("binary" in case)
    if size is not None:
        assert headers["content-type"] == "application/octet-stream"
        assert body[int(size) :] == base64.b64decode(case["binary"])
        body = body[: int(size)]
    else:
        assert headers["content-type"] == "application/json"
    expected = case.get("response_text") or json.dumps(
        case["response"], separators=(",", ":"), ensure_ascii=False
    )
    assert body.decode().replace("e+", "e") == expected.replace("e+", "e")  # 1e30 has two spellings
    for name, value in case.get("response_headers", {}).items():
        assert headers[name] == value
