"""A server with API keys: T05 for TGI's clients, and every other family the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from headrace.kserve.v2 import grpc_service_pb2, grpc_service_pb2_grpc
from headrace.v1 import embedding_pb2, embedding_pb2_grpc, generation_pb2, generation_pb2_grpc
from running import ServerProcess, start_server, stop_server

KEY = "s3cret"
RIGHT = {"Authorization": f"Bearer {KEY}"}
METADATA = (("authorization", f"Bearer {KEY}"),)
GUARDED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    ("/", {"inputs": "x", "parameters": {"max_new_tokens": 1}}),
    ("/embed", {"inputs": "x"}),
    ("/v1/embeddings", {"input": "x"}),
    ("/models/minilm/proxy/embed", {"inputs": "x"}),
    ("/v2/models/minilm/generate", {"text": "x"}),
    ("/tokenize", {"prompt": "x"}),
)


@pytest.fixture(scope="module")
def guarded(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start_server(
        "--model-repository", str(demo_repository), "--load-models", '["minilm","smollm2"]',
        "--api-keys", f'["other","{KEY}"]',
        log=tmp_path_factory.mktemp("keys") / "server.log",
    )  # fmt: skip
    yield running
    assert stop_server(running) == 0


@pytest.mark.parametrize(("path", "body"), GUARDED)
def test_t05_inference_needs_a_key(guarded: ServerProcess, path: str, body: dict[str, Any]) -> None:
    url = f"{guarded.url}{path}"
    for headers in (
        {},
        {"Authorization": "Bearer -"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
    ):
        refused = httpx.post(url, json=body, headers=headers, timeout=60)
        assert refused.status_code == 401
        assert "error" in refused.json()
        assert KEY not in refused.text
    for scheme in ("Bearer", "bearer", "BEARER"):
        given = {"Authorization": f"{scheme} {KEY}"}
        assert httpx.post(url, json=body, headers=given, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/ping",
        "/info",
        "/metrics",
        "/v1/models",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
    ],
)
def test_t05_probes_need_none(guarded: ServerProcess, path: str) -> None:
    assert httpx.get(f"{guarded.url}{path}", timeout=60).status_code == 200


def test_typed_and_kserve_calls_need_a_key(guarded: ServerProcess) -> None:
    with grpc.insecure_channel(guarded.grpc) as channel:
        embedding = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        request = embedding_pb2.EmbedRequest(texts=["x"])
        with pytest.raises(grpc.RpcError) as refused:
            embedding.Embed(request)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = embedding.Embed(request, metadata=METADATA)
        assert len(answer.embeddings) == 1
        kserve = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert kserve.ServerReady(grpc_service_pb2.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError) as refused:
            kserve.ModelMetadata(grpc_service_pb2.ModelMetadataRequest(name="minilm"))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def completion(guarded: ServerProcess, words: str, key: str = KEY) -> int:
    body, headers = {"prompt": words, "max_tokens": 1}, {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{guarded.url}/v1/completions", json=body, headers=headers, timeout=60).json()
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def tgi(guarded: ServerProcess, words: str) -> None:
    body = {"inputs": words, "parameters": {"max_new_tokens": 1}}
    assert httpx.post(f"{guarded.url}/generate", json=body, headers=RIGHT, timeout=60).status_code == 200


def triton(guarded: ServerProcess, words: str) -> None:
    url, body = f"{guarded.url}/v2/models/smollm2/generate", {"text_input": words, "max_tokens": 1}
    assert httpx.post(url, json=body, headers=RIGHT, timeout=60).status_code == 200


def stream_infer(guarded: ServerProcess, words: str) -> None:
    request = grpc_service_pb2.ModelInferRequest(
        model_name="smollm2", inputs=[{"name": "text_input", "datatype": "BYTES", "shape": [1]}]
    )
    request.inputs[0].contents.bytes_contents.append(words.encode())
    with grpc.insecure_channel(guarded.grpc) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = next(stub.ModelStreamInfer(iter([request]), metadata=METADATA))
        assert not answer.error_message


def typed(guarded: ServerProcess, words: str) -> None:
    request = generation_pb2.GenerateRequest(text=words, parameters={"max_tokens": 1})
    with grpc.insecure_channel(guarded.grpc) as channel:
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, metadata=METADATA)


@pytest.mark.parametrize("send", [completion, tgi, triton, stream_infer, typed])
def test_cached_prefixes_are_shared_by_one_key_only(
    guarded: ServerProcess, send: Callable[[ServerProcess, str], object]
) -> None:
    words = f"By {send.__name__} this prompt came here first, and it fills a block of the cache. " * 2
    send(guarded, words)
    assert completion(guarded, words, "other") == 0
    assert completion(guarded, words) > 0


def test_openai_client_sees_an_authentication_error(guarded: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.AuthenticationError) as refused:
            client.embeddings.create(model="minilm", input="x")
        assert refused.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY) as client:
        assert client.embeddings.create(model="minilm", input="x").data


def test_t20_metrics_are_prometheus_text(guarded: ServerProcess) -> None:
    text = httpx.get(f"{guarded.url}/metrics", timeout=60).text
    assert "# TYPE tgi_request_count counter" in text
    assert KEY not in text


def test_t14_sagemakers_headers_are_ignored(guarded: ServerProcess) -> None:
    headers = {
        **RIGHT,
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        "X-Amzn-SageMaker-Target-Model": "nope",
    }
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    answer = httpx.post(f"{guarded.url}/invocations", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.json()[0]["generated_text"].startswith("x")
