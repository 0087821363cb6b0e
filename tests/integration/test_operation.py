"""Running the server: readiness, draining, signals, crashes under load, memory after unload, health."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from waiting import block_until

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.kserve.v2 import grpc_service_pb2_grpc as kserve
from headrace.v1 import embedding_pb2, embedding_pb2_grpc
from running import ROOT, ServerProcess, get_json, spawn_server, start_server, stop_server

SLOW_SECONDS = 60


def addsub(value: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="addsub")
    for i in range(2):
        request.inputs.add(name=f"INPUT{i}", datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(np.full(16, value + i, np.int32).tobytes())
    return request


def right(response: pb.ModelInferResponse, value: int) -> bool:
    total = np.frombuffer(response.raw_output_contents[0], np.int32)
    return bool((total == 2 * value + 1).all())


async def outcome(stub: Any, value: int) -> str:
    """Return ``right``, or ``lost`` for a request that a dying worker had; all else is an error."""
    try:
        answer = await stub.ModelInfer(addsub(value), timeout=30)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return "lost"
    assert right(answer, value)
    return "right"


def slow() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="slow")
    request.inputs.add(name="INPUT0", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.ones(1, np.int32).tobytes())
    return request


def workers(server: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the server's worker processes."""
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, or is about to be reaped
            if "headrace.runtimes.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def sample(server: ServerProcess, name: str) -> float:
    """Return the sum of a metric's samples, whatever their labels."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(item.value for family in families for item in family.samples if item.name == name)


def test_version_and_unknown_things_to_pull() -> None:
    run = [sys.executable, "-m", "headrace.server.cli"]
    done = subprocess.run([*run, "version"], capture_output=True, text=True, check=True, timeout=60)
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\n", done.stdout)
    wrong = subprocess.run([*run, "pull", "moon"], capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == 2
    assert "expected 'demo'" in wrong.stderr


def test_an_illegal_flag_ends_with_its_name_and_status_2() -> None:
    run = [sys.executable, "-m", "headrace.server.cli", "serve", "--http-port", "x"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "http_port" in done.stderr


def test_check_plans_for_the_cores_of_the_settings(demo_repository: Path) -> None:
    run = [sys.executable, "-m", "headrace.server.cli", "check", str(demo_repository / "addsub")]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "HEADRACE_CORES": "3"}
    )
    assert done.stdout.startswith("addsub: ok\n")
    one = "cpu with 1 thread(s)"
    assert f"instances: {one} or, alone, 3, {one}, {one}\n" in done.stdout
    done = subprocess.run(
        [*run, "--config", "absent.yaml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "headrace: configuration file absent.yaml does not exist\n"


def test_a_taken_port_is_named(server: ServerProcess, tmp_path: Path) -> None:
    port = server.http.rpartition(":")[2]
    run = [sys.executable, "-m", "headrace.server.cli", "serve", "--http-port", port, "--grpc-port", "0"]
    done = subprocess.run(
        [*run, "--load-models", "addsub"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    assert port in done.stderr


def test_the_server_never_imports_a_framework() -> None:
    script = (
        "import sys, headrace.server.app\n"
        "print([m for m in ('torch', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_health_knows_the_server_its_services_and_its_models(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "headrace.live", "inference.GRPCInferenceService", "tei.v1.Rerank", "minilm"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1, name
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="multiv"), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        control = kserve.GRPCInferenceServiceStub(channel)
        control.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="multiv"), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        control.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="multiv"), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection_lists_and_describes_as_grpcurl_asks(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        listed, described = stub.ServerReflectionInfo(iter(questions), timeout=10)
        names = {service.name for service in listed.list_services_response.service}
        expected = {"inference.GRPCInferenceService", "headrace.v1.EmbeddingService", "grpc.health.v1.Health"}
        assert expected <= names
        assert described.file_descriptor_response.file_descriptor_proto


def test_native_grpc_passes_on_the_rest_port(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.http) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        answer = stub.Embed(embedding_pb2.EmbedRequest(texts=["a cat"]), timeout=30)
        assert len(answer.embeddings[0].values) == 384
        assert right(kserve.GRPCInferenceServiceStub(channel).ModelInfer(addsub(3), timeout=10), 3)


def test_every_answer_carries_a_request_id(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = kserve.GRPCInferenceServiceStub(channel)
        _, call = stub.ModelInfer.with_call(addsub(1), timeout=10, metadata=(("x-request-id", "mine"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"
        _, call = stub.ServerLive.with_call(pb.ServerLiveRequest(), timeout=10)
        assert dict(call.trailing_metadata())["x-request-id"]
    with urllib.request.urlopen(f"{server.url}/v2", timeout=10) as answer:
        assert answer.headers["x-request-id"]


def test_errors_have_rich_details(server: ServerProcess) -> None:
    from google.rpc.error_details_pb2 import ErrorInfo
    from grpc_status import rpc_status

    with grpc.insecure_channel(server.grpc) as channel:
        stub = kserve.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(pb.ModelInferRequest(model_name="nope"), timeout=10)
        status = rpc_status.from_call(raised.value)  # type: ignore[arg-type] # it is a call too
        assert status is not None
        info = ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.domain, info.reason) == ("headrace", "MODEL_NOT_FOUND")


def test_metrics_count_requests_batches_and_tritons_names(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        kserve.GRPCInferenceServiceStub(channel).ModelInfer(addsub(1), timeout=10)
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    success = re.search(
        r'^nv_inference_request_success\{model="addsub",version="1"\} (\d+)$', text, re.MULTILINE
    )
    assert success
    assert int(success[1]) >= 1
    series = r'headrace_requests_total\{.*method="ModelInfer",model="addsub".*protocol="kserve"'
    assert re.search(series, text)
    for name in ("queue_seconds_bucket", "batch_rows_bucket", "compute_seconds_sum"):
        assert f"headrace_{name}{{" in text
    assert 'nv_inference_request_failure{model="addsub",version="1",reason="REJECTED"}' in text


def test_a_deadline_frees_the_worker(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = kserve.GRPCInferenceServiceStub(channel)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(slow(), timeout=0.3)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Not stopped, the three runs would hold both instances for as long as they take.
        stub.ModelInfer(slow(), timeout=SLOW_SECONDS)


def test_a_deadline_over_rest_is_504(server: ServerProcess) -> None:
    body = {"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "INT32", "data": [1]}]}
    request = urllib.request.Request(
        f"{server.url}/v2/models/slow/infer",
        json.dumps(body).encode(),
        {"OICM-Request-Timeout": "0.3", "Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=SLOW_SECONDS)
    assert raised.value.code == 504
    assert "deadline of 0.3 seconds" in json.loads(raised.value.read())["error"]


def test_killed_workers_under_load_lose_no_request(demo_repository: Path, tmp_path: Path) -> None:
    clients, kills = 16, 4
    server = start_server(
        "--model-repository", str(demo_repository), "--load-models", "addsub", log=tmp_path / "log"
    )
    outcomes: Counter[str] = Counter()
    killed: set[int] = set()

    async def client(stub: Any, number: int) -> None:
        while len(killed) < kills or outcomes["right"] < 100 * (kills + 1):
            outcomes[await outcome(stub, number)] += 1

    async def assassin() -> None:
        for kill in range(1, kills + 1):
            enough = 100 * kill
            while outcomes["right"] < enough:
                await asyncio.sleep(0.001)
            while not (victims := [worker for worker in workers(server.process) if worker.pid not in killed]):
                await asyncio.sleep(0.02)
            victims[0].kill()
            killed.add(victims[0].pid)

    async def load() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = kserve.GRPCInferenceServiceStub(channel)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(assassin())
                for number in range(clients):
                    tasks.create_task(client(stub, number))
            assert right(await stub.ModelInfer(addsub(5), timeout=30), 5)

    try:
        asyncio.run(load())
        block_until(lambda: sample(server, "headrace_worker_restarts_total") >= kills)
        assert sample(server, "headrace_worker_restarts_total") == kills
    finally:
        assert stop_server(server) == 0
    assert outcomes["lost"] <= kills * clients


def test_unload_gives_the_memory_back(demo_repository: Path, tmp_path: Path) -> None:
    server = start_server(
        "--model-repository", str(demo_repository), "--load-models", "minilm", log=tmp_path / "log"
    )
    try:
        before = workers(server.process)
        assert before
        assert sum(worker.memory_info().rss for worker in before) > 80 * 2**20
        with grpc.insecure_channel(server.grpc) as channel:
            stub = kserve.GRPCInferenceServiceStub(channel)
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="minilm"), timeout=30)
        deadline = time.monotonic() + 30
        while workers(server.process) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not workers(server.process)
        gone = "Request for unknown model: 'minilm' has no available versions"
        assert get_json(f"{server.url}/v2/models/minilm") == (404, {"error": gone})
    finally:
        assert stop_server(server) == 0


def test_sigterm_finishes_what_runs_and_leaves_no_process(identity_repository: Path, tmp_path: Path) -> None:
    server = start_server(
        "--model-repository", str(identity_repository), "--load-models", "slow", log=tmp_path / "log"
    )
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert any("envoy" in child.name() for child in children)
    with grpc.insecure_channel(server.grpc) as channel:
        running = kserve.GRPCInferenceServiceStub(channel).ModelInfer.future(slow(), timeout=SLOW_SECONDS)
        block_until(lambda: sample(server, "headrace_batches_total") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert running.result().outputs[0].name == "OUTPUT0"
        assert server.process.wait(30) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_second_sigterm_stops_at_once(identity_repository: Path, tmp_path: Path) -> None:
    server = start_server(
        "--model-repository", str(identity_repository), "--load-models", "slow",
        "--drain-seconds", "600", log=tmp_path / "log",
    )  # fmt: skip
    children = psutil.Process(server.process.pid).children(recursive=True)
    idle = sample(server, "headrace_requests_active")
    with grpc.insecure_channel(server.grpc) as channel:
        stub = kserve.GRPCInferenceServiceStub(channel)
        running = [stub.ModelInfer.future(slow(), timeout=SLOW_SECONDS) for _ in range(30)]
        block_until(lambda: sample(server, "headrace_requests_active") >= idle + len(running))
        server.process.send_signal(signal.SIGTERM)
        block_until(lambda: '"draining"' in (tmp_path / "log").read_text())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert [call for call in running if call.exception() is not None], "30 slow runs cannot have finished"
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_sigterm_while_models_load_gives_the_start_up(demo_repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn_server("--model-repository", str(demo_repository), "--load-models", "minilm", log=log)
    try:
        block_until(lambda: workers(process) or process.poll() is not None)
        loading = workers(process)
        for worker in loading:  # importing a framework takes them far longer than finding them
            worker.suspend()
        assert '"loading models"' in log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    text = log.read_text()
    assert '"server ready"' not in text
    assert '"server stopped"' in text
    assert "Traceback" not in text
    assert not [child for child in (*children, *loading) if child.is_running()]


def test_a_killed_server_leaves_no_process(demo_repository: Path, tmp_path: Path) -> None:
    server = start_server(
        "--model-repository", str(demo_repository), "--load-models", "addsub", log=tmp_path / "log"
    )
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 2
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
