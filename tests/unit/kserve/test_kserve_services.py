"""Everything but inference and the repository, on both wires: health, metadata, configuration, statistics."""

from __future__ import annotations

import base64
import gzip
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.codecs.kserve_messages import to_plain
from headrace.server.codecs.kserve_metadata import EXTENSIONS

if TYPE_CHECKING:
    from unit.kserve.conftest import Models, RestAnswer, Wire


def parsed(answer: RestAnswer) -> Any:
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body)


async def test_server_metadata(wire: Wire) -> None:
    over_grpc = await wire.grpc.ServerMetadata(pb.ServerMetadataRequest())
    over_rest = parsed(await wire.rest("ServerMetadata"))
    assert over_rest == {
        "name": "headrace",
        "version": version("headrace"),
        "extensions": list(EXTENSIONS),
    }
    assert list(over_rest) == ["name", "version", "extensions"]
    assert MessageToDict(over_grpc) == over_rest


async def test_health(models: Models, wire: Wire) -> None:
    models.simple()
    assert (await wire.grpc.ServerLive(pb.ServerLiveRequest())).live
    assert parsed(await wire.rest("ServerLive")) == {"live": True}
    # The repository of these tests never started, so the server is not ready.
    assert not (await wire.grpc.ServerReady(pb.ServerReadyRequest())).ready
    answer = await wire.rest("ServerReady")
    assert (answer.status, parsed(answer)) == (400, {"ready": False})
    await models.repository.start()
    assert (await wire.grpc.ServerReady(pb.ServerReadyRequest())).ready
    answer = await wire.rest("ServerReady")
    assert (answer.status, parsed(answer)) == (200, {"ready": True})


@pytest.mark.parametrize(
    ("name", "number", "ready", "status", "body"),
    [
        ("simple", "", True, 200, {"name": "simple", "ready": True}),
        ("simple", "1", True, 200, {"name": "simple", "ready": True}),
        ("simple", "2", False, 400, {"error": "Model version not ready"}),
        ("nope", "", False, 404, {"error": "Request for unknown model: 'nope' is not found"}),
    ],
)
async def test_model_ready(
    models: Models, wire: Wire, name: str, number: str, ready: bool, status: int, body: dict[str, object]
) -> None:
    models.simple()
    assert (await wire.grpc.ModelReady(pb.ModelReadyRequest(name=name, version=number))).ready == ready
    answer = await wire.rest("ModelReady", model=name, version=number)
    assert (answer.status, parsed(answer)) == (status, body)


async def test_model_ready_of_a_malformed_version(wire: Wire) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.ModelReady(pb.ModelReadyRequest(name="simple", version="abc"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await wire.rest("ModelReady", model="simple", version="abc")).status == 400


async def test_model_metadata(models: Models, wire: Wire) -> None:
    models.simple()
    models.identity("BYTES")
    answer = await wire.rest("ModelMetadata", model="simple", version="1")
    assert answer.body == (
        b'{"name":"simple","versions":["1"],"platform":"python","inputs":[{"name":"INPUT0","datatype":"INT32",'
        b'"shape":[-1,16]},{"name":"INPUT1","datatype":"INT32","shape":[-1,16]}],"outputs":[{"name":"OUTPUT0",'
        b'"datatype":"INT32","shape":[-1,16]},{"name":"OUTPUT1","datatype":"INT32","shape":[-1,16]}]}'
    )
    over_grpc = await wire.grpc.ModelMetadata(pb.ModelMetadataRequest(name="simple"))
    assert to_plain(over_grpc) == json.loads(answer.body)
    without_batch = await wire.grpc.ModelMetadata(pb.ModelMetadataRequest(name="id_bytes"))
    assert list(without_batch.inputs[0].shape) == [-1]
    answer = await wire.rest("ModelMetadata", model="nope")
    assert answer.status == 404
    assert parsed(answer) == {"error": "Request for unknown model: 'nope' is not found"}


async def test_model_list(models: Models, wire: Wire) -> None:
    assert parsed(await wire.rest("ListModels")) == {"models": []}
    models.simple(name="b")
    models.simple(name="a")
    assert parsed(await wire.rest("ListModels")) == {"models": ["a", "b"]}


async def test_model_config(models: Models, wire: Wire) -> None:
    model = models.simple()
    answer = parsed(await wire.rest("ModelConfig", model="simple"))
    assert answer["max_batch_size"] == 8
    over_grpc = await wire.grpc.ModelConfig(pb.ModelConfigRequest(name="simple"))
    assert over_grpc.config == model.config


def test_config_as_json() -> None:
    config = ParseDict(
        {
            "name": "m",
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": ["-1", "16"]}],
            "instance_group": [{"name": "m_0", "kind": "KIND_CPU", "count": 2}],
            "dynamic_batching": {"max_queue_delay_microseconds": "18446744073709551615"},
            "parameters": {"b": {"string_value": "2"}, "a": {"string_value": "1"}},
        },
        ModelConfig(),
    )
    plain = to_plain(config)
    assert list(plain)[:6] == ["name", "platform", "backend", "runtime", "version_policy", "max_batch_size"]
    assert plain["platform"] == ""
    assert plain["max_batch_size"] == 0
    assert plain["version_policy"] == {"latest": {"num_versions": 1}}
    assert plain["input"][0] == {
        "name": "X",
        "data_type": "TYPE_FP32",
        "format": "FORMAT_NONE",
        "dims": [-1, 16],
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": False,
        "is_non_linear_format_io": False,
    }
    assert plain["output"] == []
    assert plain["instance_group"][0]["kind"] == "KIND_CPU"
    assert plain["dynamic_batching"]["max_queue_delay_microseconds"] == 18446744073709551615
    assert plain["parameters"] == {"a": {"string_value": "1"}, "b": {"string_value": "2"}}
    assert "sequence_batching" not in plain  # another choice of the same oneof
    assert "optimization" not in plain
    assert plain["metric_tags"] == {}


def test_bytes_and_unknown_enum_values_as_json() -> None:
    parameter = pb.ModelRepositoryParameter(bytes_param=b"\xff")
    assert to_plain(parameter) == {"bytes_param": base64.b64encode(b"\xff").decode()}
    config = ModelConfig()
    config.input.add().data_type = 99  # type: ignore[assignment]
    assert to_plain(config)["input"][0]["data_type"] == 99


async def run_once(wire: Wire, model: str, rows: int) -> None:
    message = pb.ModelInferRequest(model_name=model)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[rows, 16])
        message.raw_input_contents.append(np.ones((rows, 16), np.int32).tobytes())
    await wire.grpc.ModelInfer(message)


async def test_statistics(models: Models, wire: Wire) -> None:
    models.simple()
    models.simple(name="other")
    for rows in (3, 1, 3):
        await run_once(wire, "simple", rows)
    answer = await wire.rest("ModelStatistics", model="simple", version="1")
    (entry,) = parsed(answer)["model_stats"]
    assert list(entry) == [
        "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats",
        "response_stats", "batch_stats", "memory_usage",
    ]  # fmt: skip
    assert (entry["name"], entry["version"]) == ("simple", "1")
    assert (entry["inference_count"], entry["execution_count"]) == (7, 3)
    assert entry["last_inference"] > 1_600_000_000_000
    assert list(entry["inference_stats"]) == [
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit",
        "cache_miss",
    ]  # fmt: skip
    assert entry["inference_stats"]["success"]["count"] == 3
    assert entry["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    assert entry["response_stats"] == {}
    assert entry["memory_usage"] == []
    assert entry["batch_stats"][0]["batch_size"] == 1
    assert entry["batch_stats"][1] == {
        "batch_size": 3,
        "compute_input": {"count": 2, "ns": 2},
        "compute_infer": {"count": 2, "ns": 4},
        "compute_output": {"count": 2, "ns": 6},
    }
    everything = await wire.grpc.ModelStatistics(pb.ModelStatisticsRequest())
    assert [stats.name for stats in everything.model_stats] == ["other", "simple"]
    assert everything.model_stats[1].inference_count == 7
    assert [e["name"] for e in parsed(await wire.rest("ModelStatistics"))["model_stats"]] == [
        "other",
        "simple",
    ]


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        ("nope", "", "requested model 'nope' is not available"),
        ("simple", "7", "requested model version is not available for model 'simple'"),
    ],
)
async def test_statistics_of_what_is_not_there(
    models: Models, wire: Wire, name: str, number: str, text: str
) -> None:
    models.simple()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.ModelStatistics(pb.ModelStatisticsRequest(name=name, version=number))
    assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", text)
    answer = await wire.rest("ModelStatistics", model=name, version=number)
    assert (answer.status, parsed(answer)) == (400, {"error": text})


@pytest.mark.parametrize(
    "method",
    [
        f"{kind}SharedMemory{action}"
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    ]
    + ["TraceSetting", "LogSettings"],
)
async def test_what_is_not_offered_says_so(wire: Wire, method: str) -> None:
    request_type = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method].input_type
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(wire.grpc, method)(getattr(pb, request_type.name)())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert str(caught.value.details()).endswith("is not offered by this server")


async def test_full_queue_over_rest(models: Models, wire: Wire) -> None:
    models.simple(max_queue=0)
    models.instances["simple"].open = False
    body = json.dumps(
        {
            "inputs": [
                {"name": name, "datatype": "INT32", "shape": [1, 16], "data": [0] * 16}
                for name in ("INPUT0", "INPUT1")
            ]
        }
    ).encode()
    answer = await wire.rest("ModelInfer", model="simple", body=body)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert parsed(answer) == {"error": "[request id: <id_unknown>] Exceeds maximum queue size"}


async def test_large_bodies_take_the_thread_and_mean_the_same(models: Models, wire: Wire) -> None:
    models.identity("FP64")
    numbers = np.linspace(0, 1, 30_000)
    message = {"name": "INPUT0", "datatype": "FP64", "shape": [30_000], "data": numbers.tolist()}
    answer = await wire.rest("ModelInfer", model="id_fp64", body=json.dumps({"inputs": [message]}).encode())
    assert parsed(answer)["outputs"][0]["data"] == numbers.tolist()
    request = pb.ModelInferRequest(model_name="id_fp64")
    tensor = request.inputs.add(name="INPUT0", datatype="FP64", shape=[30_000])
    tensor.contents.fp64_contents.extend(numbers)
    over_grpc = await wire.grpc.ModelInfer(request)
    assert over_grpc.raw_output_contents[0] == numbers.tobytes()


async def test_decompressed_size_is_limited(models: Models, wire: Wire) -> None:
    models.simple()
    bomb = gzip.compress(bytes(1 << 21))
    answer = await wire.rest("ModelInfer", {"Content-Encoding": "gzip"}, model="simple", body=bomb)
    assert answer.status == 413
    assert "1048576 bytes" in parsed(answer)["error"]
