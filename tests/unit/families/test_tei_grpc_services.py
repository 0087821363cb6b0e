"""The gRPC services of Text Embeddings Inference: models of another kind, streams of queries, health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rest_call import Context

from headrace.server.errors import InputEmptyError, ModelNotFoundError, TaskNotSupportedError
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.services.call import Call
from headrace.server.services.health import Health
from headrace.server.services.tei_embed import TeiEmbedService
from headrace.server.services.tei_text import TeiPredictService, TeiRerankService
from headrace.server.serving import service_health
from headrace.server.tasks.tokenization import Tokenizing
from headrace.tei.v1 import tei_pb2


def call_of(model: str = "") -> Call:
    headers = {"x-headrace-model": model} if model else {}
    return Call(Context(headers), "test")  # type: ignore[arg-type]


def embed(repository: Any, tokenizing: Tokenizing, call: Call) -> Any:
    return TeiEmbedService(repository, tokenizing, "cpu").Embed(tei_pb2.EmbedRequest(inputs="a"), call)


def predict(repository: Any, tokenizing: Tokenizing, call: Call) -> Any:
    return TeiPredictService(repository, tokenizing, "cpu").Predict(tei_pb2.PredictRequest(inputs="a"), call)


def rerank(repository: Any, tokenizing: Tokenizing, call: Call) -> Any:
    request = tei_pb2.RerankRequest(query="a", texts=["b"])
    return TeiRerankService(repository, tokenizing, 4, "cpu").Rerank(request, call)


@pytest.mark.parametrize(("rpc", "task", "error"), [
    (embed, Task.CLASSIFY, "Model is not an embedding model: model 'm' is for task classify"),
    (predict, Task.EMBED, "model is not a classifier model: model 'm' is for task embed"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["m", ""])
async def test_a_model_of_another_kind(
    repository: Any, tokenizing: Tokenizing, rpc: Any, task: Task, error: str, name: str
) -> None:
    """Also where it is the only one and nobody names it."""
    repository.text("m", task, labels=("a", "b", "c"))
    with pytest.raises(TaskNotSupportedError) as refused:
        await rpc(repository, tokenizing, call_of(name))
    code, text = TeiEmbedService.grpc_status(refused.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text.startswith(f"Backend error: {error}")


@pytest.mark.parametrize("rpc", [embed, predict, rerank])
async def test_no_encoder_at_all(repository: Any, tokenizing: Tokenizing, rpc: Any) -> None:
    numbers = [ModelTensor("x", "FP32", (1,))]
    repository.tensors("t", numbers, numbers, dict)
    with pytest.raises(ModelNotFoundError):
        await rpc(repository, tokenizing, call_of())


async def test_a_reranker_of_another_kind(repository: Any, tokenizing: Tokenizing) -> None:
    numbers = [ModelTensor("x", "FP32", (1,))]
    repository.tensors("t", numbers, numbers, dict)
    with pytest.raises(TaskNotSupportedError, match=r"^model is not a re-ranker model: model 't' is for"):
        await rerank(repository, tokenizing, call_of("t"))


async def rank_stream(service: TeiRerankService, *requests: tei_pb2.RerankStreamRequest) -> Any:
    async def given() -> AsyncIterator[tei_pb2.RerankStreamRequest]:
        for request in requests:
            yield request

    return await service.RerankStream(given(), call_of())


async def test_every_message_of_a_rerank_stream_has_its_own_query(
    repository: Any, tokenizing: Tokenizing, reference: Any
) -> None:
    """``raw_scores`` and ``return_text`` are the first message's, all else is each message's own."""
    repository.text("r", Task.RERANK, labels=("relevance",), max_tokens=6)
    service = TeiRerankService(repository, tokenizing, 8, "cpu")
    asked = [("paris", "berlin"), ("banana", "good"), ("paris", "what is"), ("good", "bad")]
    messages = [
        tei_pb2.RerankStreamRequest(query=query, text=text, raw_scores=not index, return_text=not index)
        for index, (query, text) in enumerate(asked)
    ]
    long = ("a", "a b c good bad paris")
    messages.append(tei_pb2.RerankStreamRequest(query=long[0], text=long[1], truncate=True))
    messages.append(
        tei_pb2.RerankStreamRequest(
            query=long[0], text=long[1], truncate=True,
            truncation_direction=tei_pb2.TRUNCATION_DIRECTION_LEFT,
        )
    )  # fmt: skip
    answer = await rank_stream(service, *messages)
    cut = [("a", "a b"), ("a", "bad paris")]
    logits = [float(reference(pair)["logits"][0]) for pair in asked + cut]
    order = np.argsort(-np.array(logits), kind="stable").tolist()
    assert [rank.index for rank in answer.ranks] == order
    np.testing.assert_allclose([rank.score for rank in answer.ranks], [logits[i] for i in order], rtol=1e-4)
    assert [rank.text for rank in answer.ranks] == [messages[index].text for index in order]
    with pytest.raises(InputEmptyError):
        await rank_stream(
            service, tei_pb2.RerankStreamRequest(query="a", text="b"), tei_pb2.RerankStreamRequest()
        )


async def test_health_follows_the_kinds_of_the_models(repository: Any) -> None:
    health = Health(service_health())
    server = grpc.aio.server()
    health.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def serving(channel: grpc.aio.Channel) -> set[str]:
        stub = health_pb2_grpc.HealthStub(channel)
        return {
            name
            for name in ("Info", "Tokenize", "Embed", "Predict", "Rerank")
            if (await stub.Check(health_pb2.HealthCheckRequest(service=f"tei.v1.{name}"))).status == 1
        }

    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health.update(ready=False, models={})
            assert await serving(channel) == {"Info", "Tokenize"}
            repository.text("c", Task.CLASSIFY, labels=("a", "b", "c"))
            health.update(ready=False, models={}, loaded=repository.ready_models())
            assert await serving(channel) == {"Info", "Tokenize", "Predict"}
            repository.text("e", Task.EMBED)
            health.update(ready=True, models={}, loaded=repository.ready_models())
            assert await serving(channel) == {"Info", "Tokenize", "Embed", "Predict", "Rerank"}
            del repository.entries["e"], repository.entries["c"]
            repository.text("r", Task.RERANK, labels=("a",))
            health.update(ready=True, models={}, loaded=repository.ready_models())
            assert await serving(channel) == {"Info", "Tokenize", "Predict", "Rerank"}
    finally:
        await server.stop(None)
