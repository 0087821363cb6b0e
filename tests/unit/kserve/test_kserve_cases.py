"""The conformance tables of both KServe wires against the services in this process."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest

if TYPE_CHECKING:
    from tests.unit.kserve.conftest import Models, Wire

TABLES = Path(__file__).parents[2] / "conformance" / "data"
GRPC_CASES = json.loads((TABLES / "kserve-grpc-cases.json").read_text())
REST_CASES = json.loads((TABLES / "kserve-rest-cases.json").read_text())


@pytest.mark.parametrize("case", GRPC_CASES, ids=lambda case: case["name"])
async def test_grpc(case: dict[str, Any], models: Models, wire: Wire) -> None:
    models.everything()
    message = ParseDict(case["request"], ModelInferRequest())
    for raw in case.get("raw", ()):
        message.raw_input_contents.append(bytes(raw) if isinstance(raw, int) else base64.b64decode(raw))
    if "text" in case:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.grpc.ModelInfer(message)
        assert caught.value.details() == case["text"]
        assert caught.value.code().name == case["code"]
        return
    answered = MessageToDict(await wire.grpc.ModelInfer(message), preserving_proto_field_name=True)
    assert {key: answered[key] for key in case["response"]} == case["response"]


@pytest.mark.parametrize("case", REST_CASES, ids=lambda case: case["name"])
async def test_rest(case: dict[str, Any], models: Models, wire: Wire) -> None:
    models.everything()
    answer = await wire.rest(
        "ModelInfer",
        case.get("headers"),
        model=case["model"],
        version=case.get("version", ""),
        body=request_body(case),
    )
    body = answer.body
    assert answer.status == case["status"], body
    assert answer.headers.get("content-encoding") == case.get("encoding")
    if "encoding" in case:
        body = gzip.decompress(body) if case["encoding"] == "gzip" else zlib.decompress(body)
    size = answer.headers.get("inference-header-content-length")
    assert (size is not None) == ("binary" in case)
    if size is not None:
        assert answer.headers["content-type"] == "application/octet-stream"
        assert body[int(size) :] == base64.b64decode(case["binary"])
        body = body[: int(size)]
    else:
        assert answer.headers["content-type"] == "application/json"
    expected = case.get("response_text") or json.dumps(
        case["response"], separators=(",", ":"), ensure_ascii=False
    )
    assert body.decode().replace("e+", "e") == expected.replace("e+", "e")  # 1e30 has two spellings
    for key, value in case.get("response_headers", {}).items():
        assert answer.headers[key] == value


def request_body(case: dict[str, Any]) -> bytes:
    """The bytes that a case of the REST table sends."""
    if "base64" in case:
        return base64.b64decode(case["base64"])
    if "repeated" in case:
        return "".join(text * count for text, count in case["repeated"]).encode()
    if "text" in case:
        return str(case["text"]).encode()
    return json.dumps(case["body"]).encode()
