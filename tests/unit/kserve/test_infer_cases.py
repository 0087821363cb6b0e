"""The cases of the gRPC conformance table, from the message to the message, on models in this process."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest
from headrace.server.codecs.tensors import decode_request, encode_response
from headrace.server.errors import HeadraceError, status_of
from headrace.server.tasks.infer import infer

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.tokenization import Tokenizing
    from tests.unit.kserve.conftest import Models

TABLE = Path(__file__).parents[2] / "conformance" / "data" / "kserve-grpc-cases.json"
CASES = [
    case
    for case in json.loads(TABLE.read_text())
    # Names and versions of models are the repository's affair.
    if case["code"] != "NOT_FOUND" and "version" not in case["name"]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_case(case: dict[str, Any], models: Models, tokenizing: Tokenizing) -> None:
    message = ParseDict(case["request"], ModelInferRequest())
    for raw in case.get("raw", ()):
        message.raw_input_contents.append(bytes(raw) if isinstance(raw, int) else base64.b64decode(raw))
    model = _model(models, message.model_name)
    if "text" in case:
        with pytest.raises(HeadraceError) as caught:
            await infer(tokenizing, model, decode_request(message))
        assert caught.value.message == case["text"]
        assert status_of(caught.value).code.name == case["code"]
        return
    response = encode_response(await infer(tokenizing, model, decode_request(message)))
    answered = MessageToDict(response, preserving_proto_field_name=True)
    assert {key: answered[key] for key in case["response"]} == case["response"]


def _model(models: Models, name: str) -> Model:
    if name == "addsub":
        return models.simple(name=name, max_batch_size=64)
    if name == "nobatch":
        return models.simple(name=name, max_batch_size=0)
    datatype = name.removeprefix("id_").upper()
    return models.identity("BYTES" if datatype == "STRING" else datatype, name=name)
