"""The model repository extension on both wires: index, load, unload."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.server.codecs.kserve_repository import decode_json_load, decode_load
from headrace.server.errors import InvalidArgumentError, InvalidJsonError

if TYPE_CHECKING:
    from pathlib import Path

    from unit.kserve.conftest import Models, RestAnswer, Wire


def parsed(answer: RestAnswer) -> Any:
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body)


async def test_repository_index(models: Models, wire: Wire, tmp_path: Path) -> None:
    models.simple()
    (tmp_path / "never-loaded" / "1").mkdir(parents=True)
    (tmp_path / "never-loaded" / "1" / "model.onnx").touch()
    expected = [{"name": "never-loaded"}, {"name": "simple", "version": "1", "state": "READY"}]
    for fields in ({}, {"body": b"{}"}, {"repository": "any"}, {"body": b'{"ready":false}'}):
        assert parsed(await wire.rest("RepositoryIndex", **fields)) == expected
    assert parsed(await wire.rest("RepositoryIndex", body=b'{"ready":true}')) == expected[1:]
    over_grpc = await wire.grpc.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [MessageToDict(entry) for entry in over_grpc.models] == expected
    over_grpc = await wire.grpc.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [MessageToDict(entry) for entry in over_grpc.models] == expected[1:]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b"{a:1}",
            "failed to parse the request JSON buffer: unexpected character, expected a string key. at 1",
        ),
        (b'{"ready":1}', "Unable to parse 'ready': attempt to access JSON non-boolean as boolean"),
    ],
)
async def test_wrong_index_bodies(wire: Wire, body: bytes, text: str) -> None:
    answer = await wire.rest("RepositoryIndex", body=body)
    assert (answer.status, parsed(answer)) == (400, {"error": text})


async def test_a_repository_cannot_be_named(wire: Wire) -> None:
    text = "'repository_name' specification is not supported"
    for method, message in (
        (wire.grpc.RepositoryIndex, pb.RepositoryIndexRequest(repository_name="x")),
        (wire.grpc.RepositoryModelLoad, pb.RepositoryModelLoadRequest(repository_name="x")),
        (wire.grpc.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(repository_name="x")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(message)
        assert (caught.value.code().name, caught.value.details()) == ("UNIMPLEMENTED", text)
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        answer = await wire.rest(name, repository="x", model="m")
        assert (answer.status, parsed(answer)) == (501, {"error": text})


def load_parameters(**values: dict[str, Any]) -> dict[str, pb.ModelRepositoryParameter]:
    return {key.replace("__", ":"): pb.ModelRepositoryParameter(**value) for key, value in values.items()}


def test_load_parameters() -> None:
    given = load_parameters(config={"string_param": "{}"}, file__1={"bytes_param": b"\x00"})
    overrides = decode_load(given)
    assert (overrides.config, overrides.files) == ("{}", {"1": b"\x00"})
    body = json.dumps({"parameters": {"config": "{}", "file:1/m": base64.b64encode(b"\x00\xff").decode()}})
    overrides = decode_json_load(body.encode())
    assert (overrides.config, overrides.files) == ("{}", {"1/m": b"\x00\xff"})
    assert decode_json_load(b"") == (None, {})


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (load_parameters(foo={"bool_param": True}), "unrecognized load parameter 'foo'."),
        (
            load_parameters(config={"bytes_param": b""}),
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            load_parameters(file__1={"string_param": ""}),
            "invalid value type for load parameter 'file:1', expected bytes_param.",
        ),
    ],
)
async def test_wrong_load_parameters(
    wire: Wire, parameters: dict[str, pb.ModelRepositoryParameter], text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(model_name="m", parameters=parameters)
        )
    assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"parameters": {"foo": 1}}, "unrecognized load parameter 'foo'."),
        (
            {"parameters": {"config": {}}},
            "Unable to parse 'config': attempt to access JSON non-string as string",
        ),
        ({"parameters": {"file:1/m": "*"}}, "invalid value for load parameter 'file:1/m', expected base64."),
        ({"parameters": {"file:1/m": "é"}}, "invalid value for load parameter 'file:1/m', expected base64."),
        ({"parameters": []}, "Unable to parse 'parameters': attempt to get members for non-object"),
        (
            {"parameters": {"config": "{\ud800}"}, "x": math.nan},
            "failed to parse the request JSON buffer: no low surrogate in string. at 28",
        ),
    ],
)
async def test_wrong_load_bodies(wire: Wire, body: Any, text: str) -> None:
    with pytest.raises((InvalidArgumentError, InvalidJsonError)) as caught:
        decode_json_load(json.dumps(body).encode())
    assert caught.value.message == text
    answer = await wire.rest("RepositoryModelLoad", model="m", body=json.dumps(body).encode())
    assert (answer.status, parsed(answer)) == (400, {"error": text})


async def test_load_of_a_bad_name(wire: Wire) -> None:
    for name, text in (
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("a/b", "invalid model name 'a/b', model name must not contain path traversal characters"),
        ("a" * 256, f"model name '{'a' * 80}…' is longer than the 255 bytes that a folder's may have"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.grpc.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))
        assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", text)


async def test_unload(models: Models, wire: Wire) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name="never-loaded")
    await wire.grpc.RepositoryModelUnload(request)
    request.parameters["unload_dependents"].bool_param = True
    await wire.grpc.RepositoryModelUnload(request)
    request.parameters["unload_dependents"].int64_param = 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.RepositoryModelUnload(request)
    text = "invalid value type for 'unload_dependents' parameter, expected bool_param."
    assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", text)
    for body, status in (
        (b"", 200),
        (b'{"parameters":{"unload_dependents":true}}', 200),
        (b'{"parameters":{"unload_dependents":1}}', 400),
    ):
        assert (await wire.rest("RepositoryModelUnload", model="never-loaded", body=body)).status == status
