"""A server of several front processes: one server to its callers, whichever of them they reach."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import pytest
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from waiting import block_until

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.kserve.v2 import grpc_service_pb2_grpc as kserve
from headrace.v1 import embedding_pb2, embedding_pb2_grpc, generation_pb2, generation_pb2_grpc
from running import ROOT, ServerProcess, start_server, stop_server

FRONTS = 2
MODELS = ["addsub", "minilm", "smollm2", "slow", "multiv"]
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0}
SLOW_SECONDS = 60


class FrontProcess(NamedTuple):
    """A front process and its own Unix socket, as gRPC writes it."""

    pid: int
    address: str


def processes(server: ServerProcess) -> list[psutil.Process]:
    """The front processes there are now."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "headrace.server.fronts" in child.cmdline():
                found.append(child)
    return found


def found_fronts(server: ServerProcess) -> list[FrontProcess]:
    """The fronts that listen now, by the names of their sockets."""
    found: dict[str, int] = {}
    for process in processes(server):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            paths = [str(connection.laddr) for connection in process.net_connections("unix")]
            found |= {path: process.pid for path in paths if "/front-" in path}
    return [FrontProcess(found[path], f"unix:{path}") for path in sorted(found)]


@pytest.fixture(scope="module")
def several(
    demo_repository: Path, identity_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("fronts") / "server.log"
    running = start_server(
        "--model-repository", str(demo_repository), "--model-repository", str(identity_repository),
        "--load-models", json.dumps(MODELS), "--front-processes", str(FRONTS), log=log,
    )  # fmt: skip
    yield running
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert stop_server(running) == 0, log.read_text()[-4000:]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in log.read_text()


@pytest.fixture
def each(several: ServerProcess) -> Iterator[list[grpc.Channel]]:
    """A channel to each front."""
    block_until(lambda: len(found_fronts(several)) == FRONTS)
    channels = [grpc.insecure_channel(front.address) for front in found_fronts(several)]
    yield channels
    for channel in channels:
        channel.close()


def addsub(value: int = 3) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="addsub", id=str(value))
    for i in range(2):
        request.inputs.add(name=f"INPUT{i}", datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(np.full(16, value + i, np.int32).tobytes())
    return request


def one_row(model: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.ones(1, np.int32).tobytes())
    return request


def post(url: str, body: object) -> tuple[int, bytes]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def raw(channel: grpc.Channel, method: str) -> bytes:
    """Call a facade that takes nothing; the body of its answer."""
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=HttpBody.FromString)
    body: bytes = call(b"", timeout=10).data
    return body


def metric(channel: grpc.Channel, start: str) -> float:
    """Sum the samples of the exposition that begin so; asked of one front."""
    text = raw(channel, "/headrace.rest.v1.OpsService/Metrics").decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


def streamed_text(url: str) -> str:
    """Chat with a stream, and join its pieces."""
    status, body = post(f"{url}/v1/chat/completions", {**CHAT, "max_tokens": 12, "stream": True})
    assert status == 200
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"] for event in events[:-1]]
    return "".join(choices[0]["delta"].get("content") or "" for choices in pieces if choices)


def test_answers_are_those_of_one_process(
    several: ServerProcess, each: list[grpc.Channel], server: ServerProcess
) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        alone = kserve.GRPCInferenceServiceStub(channel).ModelInfer(addsub(), timeout=30)
        request = embedding_pb2.EmbedRequest(model="minilm", texts=["a cat", "two dogs ran"])
        vectors = embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed(request, timeout=30)
        for front in each:
            assert kserve.GRPCInferenceServiceStub(front).ModelInfer(addsub(), timeout=30) == alone
            found = embedding_pb2_grpc.EmbeddingServiceStub(front).Embed(request, timeout=30)
            for here, there in zip(found.embeddings, vectors.embeddings, strict=True):
                np.testing.assert_allclose(here.values, there.values, atol=1e-5)
    body = {"inputs": ["a cat"], "model": "minilm"}
    for _ in range(4):
        status, answer = post(f"{several.url}/embed", body)
        assert status == 200
        np.testing.assert_allclose(
            json.loads(answer), json.loads(post(f"{server.url}/embed", body)[1]), atol=1e-5
        )
    expected = streamed_text(server.url)
    assert expected
    assert {streamed_text(several.url) for _ in range(4)} == {expected}


def test_connections_reach_all_fronts(several: ServerProcess, each: list[grpc.Channel]) -> None:
    names = [f'headrace_front_requests_total{{front="{index}"}}' for index in range(FRONTS)]
    before = [metric(each[0], name) for name in names]
    for _ in range(24):  # each its own connection
        with grpc.insecure_channel(several.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            kserve.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=10)
    gained = [metric(each[0], name) - was for name, was in zip(names, before, strict=True)]
    assert all(gained), gained
    assert sum(gained) >= 24


def test_batches_join_requests_of_all_fronts(each: list[grpc.Channel]) -> None:
    def counts() -> tuple[int, int]:
        answer = kserve.GRPCInferenceServiceStub(each[0]).ModelStatistics(
            pb.ModelStatisticsRequest(name="addsub"), timeout=10
        )
        (model,) = answer.model_stats
        return model.inference_count, model.execution_count

    rows, batches = counts()
    stubs = [kserve.GRPCInferenceServiceStub(channel) for channel in each]
    calls = [stubs[number % FRONTS].ModelInfer.future(addsub(number), timeout=60) for number in range(400)]
    for number, call in enumerate(calls):
        answer = call.result()
        assert answer.id == str(number)
        total = np.frombuffer(answer.raw_output_contents[0], np.int32)
        assert (total == 2 * number + 1).all()
    more_rows, more_batches = counts()
    assert more_rows - rows == 400
    assert more_batches - batches < 300


def test_load_and_unload_at_one_front_hold_at_all(each: list[grpc.Channel]) -> None:
    stubs = [kserve.GRPCInferenceServiceStub(channel) for channel in each]
    watch = health_pb2_grpc.HealthStub(each[-1]).Watch(
        health_pb2.HealthCheckRequest(service="multiv"), timeout=60
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    for changing in stubs:
        changing.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="multiv"), timeout=30)
        for stub in stubs:
            assert not stub.ModelReady(pb.ModelReadyRequest(name="multiv"), timeout=10).ready
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelMetadata(pb.ModelMetadataRequest(name="multiv"), timeout=10)
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            assert raised.value.details() == "Request for unknown model: 'multiv' has no available versions"
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        changing.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="multiv"), timeout=60)
        for stub in stubs:
            assert stub.ModelReady(pb.ModelReadyRequest(name="multiv"), timeout=10).ready
            assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="nope"), timeout=30)
    failed: Any = raised.value
    assert "nope" in failed.details()
    assert dict(failed.trailing_metadata())["x-request-id"]


def test_unload_waits_for_the_requests_of_all_fronts(each: list[grpc.Channel]) -> None:
    stubs = [kserve.GRPCInferenceServiceStub(channel) for channel in each]
    running = [stub.ModelInfer.future(one_row("slow"), timeout=SLOW_SECONDS) for stub in stubs]
    block_until(lambda: metric(each[0], 'nv_inference_pending_request_count{model="slow"') == FRONTS)
    stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="slow"), timeout=30)
    for call in running:
        assert call.result().model_name == "slow"
    stubs[1].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="slow"), timeout=60)


def test_metrics_are_the_sum_of_all_fronts(several: ServerProcess, each: list[grpc.Channel]) -> None:
    names = (
        'headrace_requests_total{code="OK",method="ModelInfer",model="addsub",protocol="kserve"',
        'headrace_request_duration_seconds_count{method="ModelInfer",model="addsub",protocol="kserve"',
        'te_request_count{model="minilm",version="1",method="single"}',
        'te_embed_duration_count{model="minilm"',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="smollm2"}',
        'nv_inference_request_success{model="smollm2"',
        "tgi_request_success{",
    )
    before = [metric(each[0], name) for name in names]
    chat = {**CHAT, "max_tokens": 2, "ignore_eos": True}
    for channel in each:
        for _ in range(3):
            kserve.GRPCInferenceServiceStub(channel).ModelInfer(addsub(), timeout=10)
        embed = embedding_pb2.EmbedRequest(model="minilm", texts=["a"])
        embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed(embed, timeout=30)
        text = generation_pb2.GenerateRequest(
            model="smollm2",
            text="x",
            parameters=generation_pb2.GenerationParameters(max_tokens=2, ignore_eos=True),
        )
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(text, timeout=30)
    assert post(f"{several.url}/v1/chat/completions", chat)[0] == 200
    for channel in each:
        gained = [metric(channel, name) - was for name, was in zip(names, before, strict=True)]
        assert gained == [3 * FRONTS, 3 * FRONTS, FRONTS, FRONTS, FRONTS + 1, FRONTS + 1, FRONTS + 1]
    assert metric(each[0], "headrace_requests_active ") == 1  # this one


def test_what_is_cancelled_leaves_nothing_behind(each: list[grpc.Channel]) -> None:
    for channel in each:
        with pytest.raises(grpc.RpcError) as raised:
            kserve.GRPCInferenceServiceStub(channel).ModelInfer(one_row("slow"), timeout=0.3)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        request = generation_pb2.GenerateStreamRequest(
            model="smollm2", text="x", parameters=generation_pb2.GenerationParameters(max_tokens=2000)
        )
        stream = generation_pb2_grpc.GenerationServiceStub(channel).GenerateStream(request, timeout=60)
        next(stream)
        stream.cancel()
    block_until(lambda: metric(each[0], "nv_inference_pending_request_count{") == 0)
    block_until(lambda: metric(each[0], "headrace_requests_active ") == 1)
    assert metric(each[0], "headrace_generation_requests_running{") == 0
    assert server_load(each[0]) == 0


def server_load(channel: grpc.Channel) -> int:
    """What ``GET /load`` says."""
    load: int = json.loads(raw(channel, "/headrace.rest.v1.VllmService/Load"))["server_load"]
    return load


def test_a_request_is_aborted_from_another_front(each: list[grpc.Channel]) -> None:
    request = generation_pb2.GenerateStreamRequest(
        model="smollm2", text="Once", request_id="mine",
        parameters=generation_pb2.GenerationParameters(max_tokens=2000, ignore_eos=True),
    )  # fmt: skip
    stream = generation_pb2_grpc.GenerationServiceStub(each[0]).GenerateStream(request, timeout=60)
    next(stream)
    other = generation_pb2_grpc.GenerationServiceStub(each[1])
    assert other.Abort(generation_pb2.AbortRequest(request_id="mine"), timeout=10).aborted == 1
    assert list(stream)
    assert other.Abort(generation_pb2.AbortRequest(request_id="mine"), timeout=10).aborted == 0


def test_reflection_and_health_are_any_fronts(each: list[grpc.Channel]) -> None:
    for channel in each:
        questions = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter(questions), timeout=10
        )
        assert "inference.GRPCInferenceService" in {s.name for s in listed.list_services_response.service}
        for name in ("", "headrace.live", "inference.GRPCInferenceService", "tei.v1.Rerank", "minilm"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status == 1, name


def test_a_killed_front_comes_back_and_the_others_do_not_notice(
    several: ServerProcess, each: list[grpc.Channel]
) -> None:
    victim, survivor = found_fronts(several)
    lost = kserve.GRPCInferenceServiceStub(each[0]).ModelInfer.future(one_row("slow"), timeout=SLOW_SECONDS)
    request = generation_pb2.GenerateStreamRequest(
        model="smollm2", text="Once",
        parameters=generation_pb2.GenerationParameters(max_tokens=120, ignore_eos=True),
    )  # fmt: skip
    stream = generation_pb2_grpc.GenerationServiceStub(each[1]).GenerateStream(request, timeout=60)
    next(stream)
    stop = threading.Event()
    answers: list[tuple[int, bytes]] = []

    def ask() -> None:
        while not stop.is_set():
            answers.append(post(f"{several.url}/embed", {"inputs": "a", "model": "minilm"}))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        block_until(lambda: len(answers) > 5)
        os.kill(victim.pid, signal.SIGKILL)
        assert list(stream)[-1].HasField("end")
        block_until(lambda: len(found_fronts(several)) == FRONTS)
        stop.set()
        asking.result()
    failed = [(status, json.loads(body)["error"]) for status, body in answers if status != 200]
    assert len(failed) <= 2  # the one that it had, and one that came while the kernel closed its sockets
    assert all((status, error[-22:]) == (503, "send the request again") for status, error in failed), failed
    with pytest.raises(grpc.RpcError) as raised:
        lost.result()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    back, same = found_fronts(several)
    assert (same, back.address) == (survivor, victim.address)
    assert back.pid != victim.pid
    with grpc.insecure_channel(back.address) as channel:
        assert kserve.GRPCInferenceServiceStub(channel).ModelInfer(addsub(), timeout=30).outputs
        assert metric(channel, 'headrace_front_restarts_total{front="0"}') == 1
        block_until(lambda: metric(channel, "nv_inference_pending_request_count{") == 0)
        assert metric(channel, "headrace_requests_active ") == 1


def test_the_shared_port_is_not_shared_with_others(several: ServerProcess) -> None:
    port = several.grpc.rpartition(":")[2]
    run = [sys.executable, "-m", "headrace.server.cli", "serve", "--grpc-port", port, "--no-envoy"]
    run += ["--load-models", "addsub", "--front-processes", "2"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for gRPC" in done.stderr


def test_sigterm_finishes_what_runs_in_fronts(identity_repository: Path, tmp_path: Path) -> None:
    running = start_server(
        "--model-repository", str(identity_repository), "--load-models", "slow",
        "--front-processes", "2", "--api-keys", '["k"]', log=tmp_path / "log",
    )  # fmt: skip
    key = (("authorization", "Bearer k"),)
    with grpc.insecure_channel(running.grpc) as channel:
        stub = kserve.GRPCInferenceServiceStub(channel)
        for method, message in (
            (stub.ModelInfer, one_row("slow")),  # answered by the front
            (stub.RepositoryIndex, pb.RepositoryIndexRequest()),  # by the core
        ):
            with pytest.raises(grpc.RpcError) as raised:
                method(message, timeout=10)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10, metadata=key).models
        call = stub.ModelInfer.future(one_row("slow"), timeout=SLOW_SECONDS, metadata=key)
        pending = 'nv_inference_pending_request_count{model="slow"'
        block_until(lambda: metric(channel, pending) == 1)
        running.process.send_signal(signal.SIGTERM)
        assert call.result().outputs[0].name == "OUTPUT0"
        assert running.process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_fronts_end_with_their_core(demo_repository: Path, tmp_path: Path) -> None:
    running = start_server(
        "--model-repository", str(demo_repository), "--load-models", "addsub",
        "--front-processes", "2", log=tmp_path / "log",
    )  # fmt: skip
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert len(processes(running)) == FRONTS
    running.process.kill()
    running.process.wait()
    block_until(
        lambda: (
            not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        )
    )
