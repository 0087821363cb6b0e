"""Texts in the queue: priority and timeout of tensor requests, and what the waits of several are told as."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.runtimes.datatypes import pack_bytes
from headrace.server.errors import QueueTimeoutError
from headrace.server.repository.model import Model, ModelTensor, Task
from headrace.server.scheduling.policy import QueuePolicy
from headrace.server.tasks.embed import EmbedOptions, embed
from headrace.server.tasks.infer import infer
from headrace.server.tasks.tensors import InferRequest, InputTensor
from headrace.server.tasks.tokenization import Tokenizing

ONE_AT_A_TIME = {"max_rows": 1, "join": False}


def model_of(repository: Any, task: Task, **policy: Any) -> Model:
    """A text model that takes tensors, runs a text at a time, and whose batches are held."""
    labels = ("no", "yes") if task is Task.CLASSIFY else ()
    model: Model = repository.text("m", task, labels=labels, policy={**ONE_AT_A_TIME, **policy})
    model.max_batch_size = 8
    model.inputs = (ModelTensor("text", "BYTES", (1,)),)
    model.outputs = (ModelTensor("embedding" if task is Task.EMBED else "scores", "FP32", (-1,)),)
    repository.instances["m"].open = False
    return model


def asked(text: str, *, priority: int = 0, timeout_us: int = 0) -> InferRequest:
    tensor = InputTensor("text", "BYTES", (1, 1), pack_bytes([text.encode()]))
    return InferRequest("m", inputs=[tensor], priority=priority, timeout_us=timeout_us)


async def held(instance: Any) -> Any:
    """The batch that the instance is given next."""
    async with asyncio.timeout(10):
        while not instance.held:
            await asyncio.sleep(0.001)
    return instance.held[0]


@pytest.mark.parametrize("task", [Task.EMBED, Task.CLASSIFY])
async def test_urgent_texts_are_run_first(repository: Any, tokenizing: Tokenizing, task: Task) -> None:
    model = model_of(repository, task, priority_levels=2, default_level=2)
    instance = repository.instances["m"]
    ended: list[str] = []

    async def ask(name: str, priority: int) -> None:
        await infer(tokenizing, model, asked(name, priority=priority))
        ended.append(name)

    first = asyncio.ensure_future(ask("paris", 0))
    await held(instance)
    others = [asyncio.ensure_future(ask(name, level)) for name, level in (("a", 0), ("b", 2), ("c", 1))]
    batcher = repository.resolve("m").batcher
    async with asyncio.timeout(10):
        while batcher.waiting < len(others):
            await asyncio.sleep(0.001)
    for _ in range(4):
        instance.finish(await held(instance))
        await asyncio.sleep(0)
    await asyncio.gather(first, *others)
    assert ended == ["paris", "c", "a", "b"]


@pytest.mark.parametrize("task", [Task.EMBED, Task.CLASSIFY])
async def test_texts_whose_time_passes_are_refused(
    repository: Any, tokenizing: Tokenizing, task: Task
) -> None:
    model = model_of(repository, task, queue=QueuePolicy(allow_override=True))
    instance = repository.instances["m"]
    first = asyncio.ensure_future(infer(tokenizing, model, asked("paris", timeout_us=50_000)))
    await held(instance)
    with pytest.raises(QueueTimeoutError):
        await infer(tokenizing, model, asked("a", timeout_us=1000))
    instance.finish(await held(instance))
    assert (await first).outputs[0].shape[0] == 1


async def test_times_of_several_texts_are_means(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("m", Task.EMBED, policy=ONE_AT_A_TIME)
    instance = repository.instances["m"]
    instance.open = False
    request = asyncio.ensure_future(embed(tokenizing, model, ["a", "b", "c"], EmbedOptions()))
    waits = []
    for _ in range(3):
        batch = await held(instance)
        (part,) = batch.parts
        waits.append(batch.sent_ns - part.enqueued_ns)
        instance.finish(batch)
    timings = (await request).timings
    assert waits == sorted(waits)
    assert waits[0] < waits[2]
    assert timings.queue_ns == sum(waits) // 3
    assert timings.inference_ns == 20  # of every batch of the test's instance
    assert timings.tokenization_ns + timings.queue_ns + timings.inference_ns <= timings.total_ns
