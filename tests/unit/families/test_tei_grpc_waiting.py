"""Streams and Rerank of TEI's gRPC wait for room in a full queue; single calls are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import grpc
import pytest
from rest_call import Context
from waiting import until

from headrace.server.errors import QueueFullError
from headrace.server.repository.model import Task
from headrace.server.services.call import Call
from headrace.server.services.tei_embed import TeiEmbedService
from headrace.server.services.tei_text import TeiPredictService, TeiRerankService
from headrace.server.tasks.tokenization import Tokenizing
from headrace.tei.v1 import tei_pb2

Message = TypeVar("Message")
TEXTS = ["good", "bad", "paris", "what is", "a b", "c", "good good"]


def call() -> Call:
    return Call(Context({}), "test")  # type: ignore[arg-type]


async def given(messages: Iterable[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def all_of(answers: Any) -> list[Any]:
    return [answer async for answer in answers]


def service(repository: Any, tokenizing: Tokenizing, cls: Any, task: Task) -> Any:
    labels = ("relevance",) if task is Task.RERANK else ("a", "b")
    repository.text("m", task, max_queue=3, labels=() if task is Task.EMBED else labels)
    repository.instances["m"].open = False
    return cls(repository, tokenizing, *((8,) if task is Task.RERANK else ()), "cpu")


async def waiting(repository: Any, count: int) -> None:
    """Wait until a batch runs, ``count`` requests are there, and no more fits into the queue."""
    model, held = repository.resolve("m"), repository.instances["m"].held
    await until(lambda: held and model.active == count)
    assert 0 < model.waiting <= 3


def release(repository: Any) -> None:
    instance = repository.instances["m"]
    instance.open = True
    instance.finish(instance.held[0])


def embed_stream(service: Any) -> Any:
    return service.EmbedStream(given(tei_pb2.EmbedRequest(inputs=text) for text in TEXTS), call())


def embed_all_stream(service: Any) -> Any:
    return service.EmbedAllStream(given(tei_pb2.EmbedAllRequest(inputs=text) for text in TEXTS), call())


def predict_stream(service: Any) -> Any:
    return service.PredictStream(given(tei_pb2.PredictRequest(inputs=text) for text in TEXTS), call())


def pair_stream(service: Any) -> Any:
    requests = (tei_pb2.PredictPairRequest(inputs=[text, "good"]) for text in TEXTS)
    return service.PredictPairStream(given(requests), call())


@pytest.mark.parametrize(
    ("cls", "task", "stream"),
    [
        (TeiEmbedService, Task.EMBED, embed_stream),
        (TeiEmbedService, Task.EMBED, embed_all_stream),
        (TeiPredictService, Task.CLASSIFY, predict_stream),
        (TeiPredictService, Task.CLASSIFY, pair_stream),
    ],
)
async def test_streams_wait(
    repository: Any, tokenizing: Tokenizing, cls: Any, task: Task, stream: Callable[[Any], Any]
) -> None:
    asked = service(repository, tokenizing, cls, task)
    answers = asyncio.ensure_future(all_of(stream(asked)))
    await waiting(repository, len(TEXTS))
    assert not answers.done()
    release(repository)
    assert len(await answers) == len(TEXTS)


async def test_single_calls_are_refused_and_a_stream_that_ends_leaves_nothing(
    repository: Any, tokenizing: Tokenizing
) -> None:
    asked = service(repository, tokenizing, TeiEmbedService, Task.EMBED)
    answers = asyncio.ensure_future(all_of(embed_stream(asked)))
    await waiting(repository, len(TEXTS))
    with pytest.raises(QueueFullError) as refused:
        await asked.Embed(tei_pb2.EmbedRequest(inputs="good"), call())
    assert TeiEmbedService.grpc_status(refused.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    answers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answers
    model = repository.resolve("m")
    assert (model.waiting, model.active) == (0, 0)


async def test_rerank_waits(repository: Any, tokenizing: Tokenizing) -> None:
    asked = service(repository, tokenizing, TeiRerankService, Task.RERANK)
    request = tei_pb2.RerankRequest(query="good", texts=TEXTS[:3])
    first = [asyncio.ensure_future(asked.Rerank(request, call())) for _ in range(3)]
    messages = [tei_pb2.RerankStreamRequest(query="good", text=text) for text in TEXTS]
    streamed = asyncio.ensure_future(asked.RerankStream(given(messages), call()))
    await waiting(repository, 4)
    release(repository)
    for answer in await asyncio.gather(*first):
        assert len(answer.ranks) == 3
    assert len((await streamed).ranks) == len(TEXTS)
