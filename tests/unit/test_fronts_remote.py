"""A front's schedulers over a real socket to a session of the core, which has the real batcher."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from doubler import answer, doubled
from scripted_generation import ScriptedGenerator, byte_tokenizer, options, scripted_model
from waiting import until

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.generation.messages import Started, Tokens
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.errors import (
    CancelledError,
    ExecutionFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    QueueFullError,
)
from headrace.server.fronts.catalogue import counters, describe, pack_model, read, unpack_model
from headrace.server.fronts.link import Link
from headrace.server.fronts.messages import TO_CORE, TO_FRONT, ToCore, ToFront
from headrace.server.fronts.remote import RemoteBatcher, Requests
from headrace.server.fronts.remote_generator import RemoteGenerator
from headrace.server.fronts.session import Session
from headrace.server.repository import lookup
from headrace.server.repository.lifecycle import UNLOADED, Entry, Generation, VersionStatus
from headrace.server.repository.model import Model, ModelTensor, State, Task
from headrace.server.scheduling.batch import Batch
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part, PartInput
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.sums import take

PROMPT = np.arange(3, dtype=np.int32)


class Doubler:
    """An instance that doubles INT32 rows at once, or holds its batches until it is told to go on."""

    slots = 1
    lone_capable = False

    def __init__(self, batcher: Batcher) -> None:
        self.sink = batcher
        self.holding = False
        self.held: list[Batch] = []
        self.cancelled = 0

    @property
    def batches(self) -> int:
        return len(self.held)

    def send(self, batch: Batch) -> None:
        self.held.append(batch)
        if not self.holding:
            asyncio.get_running_loop().call_soon(self.finish)

    def cancel(self, batch: Batch) -> None:
        self.cancelled += 1
        self.held.remove(batch)
        self.sink.failed(batch, CancelledError("stopped"))

    def finish(self) -> None:
        batch = self.held.pop(0)
        answer(self.sink, batch, *doubled(batch))


class Served:
    """A core's session and a front's requests, joined by a socket pair."""

    def __init__(self) -> None:
        self.policy = BatchingPolicy(join=True, max_rows=8, max_queue=16)
        self.statistics = ModelStatistics()
        self.batcher = Batcher(self.policy, self.statistics)
        self.worker = Doubler(self.batcher)
        self.batcher.attach(self.worker)
        self.generator = ScriptedGenerator()
        self.core: Link[ToCore]
        self.front: Link[ToFront]
        self.session = Session(lambda message: self.core.send(message))  # noqa: PLW0108 - opened later
        self.requests = Requests(lambda message: self.front.send(message))  # noqa: PLW0108 - as above
        self.remote = RemoteBatcher(1, self.policy, self.requests)
        self.remote_generator = RemoteGenerator(
            2, GenerationStatistics(ModelStatistics(), 256), self.requests
        )

    async def open(self) -> None:
        ours, theirs = socket.socketpair()
        take: Any = self.session.take
        answer: Any = self.requests.answer
        self.core = await Link.over(ours, TO_CORE, take, self.session.end, patient=True)
        self.front = await Link.over(theirs, TO_FRONT, answer, lambda: None)
        self.session.models = {
            1: tensor_model(self.batcher, self.statistics),
            2: scripted_model(self.generator, byte_tokenizer()),
        }


def tensor_model(batcher: Batcher, statistics: ModelStatistics) -> Model:
    tensor = ModelTensor("IN", "INT32", (-1,), labels=("a", "b"))
    config = ModelConfig(name="double", max_batch_size=8)
    return Model("double", 3, Task.TENSORS, "test", config, 8, (tensor,), (tensor,), batcher, statistics)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    found = Served()
    await found.open()
    yield found
    found.front.close()
    found.core.close()


def part(*values: int) -> Part:
    inputs = [PartInput("IN", "INT32", (len(values),), memoryview(np.array(values, np.int32).tobytes()))]
    return Part(inputs, rows=len(values), key=(("IN", (len(values) and 1,)), ()))


async def test_parts_come_back_in_order_with_their_durations(served: Served) -> None:
    parts = [part(1, 2), part(3)]
    results = await served.remote.run(parts)
    assert [np.frombuffer(result["OUT"].data, np.int32).tolist() for result in results] == [[2, 4], [6]]
    assert isinstance(results[0]["OUT"].data, bytes)
    assert results[0]["OUT"].shape == (2,)
    pending = parts[1].pending
    assert pending is not None
    assert (pending.input_ns, pending.infer_ns, pending.output_ns) == (1000, 2000, 3000)
    assert pending.all_infer_ns == 2 * 2000
    assert pending.queue_ns <= pending.all_queue_ns <= 2 * pending.queue_ns
    assert (served.remote.active, served.session.active) == (0, 0)
    assert served.statistics.success.count == 1


async def test_requests_of_a_front_join_batches_and_large_ones_pass(served: Served) -> None:
    served.worker.holding = True
    first = asyncio.ensure_future(served.remote.run([part(0)]))
    await until(lambda: served.worker.held)
    others = [asyncio.ensure_future(served.remote.run([part(number)])) for number in range(8)]
    await until(lambda: served.batcher.waiting == 8)
    served.worker.holding = False
    served.worker.finish()
    await asyncio.gather(first, *others)
    assert (served.statistics.execution_count, served.statistics.inference_count) == (2, 9)
    values = range(500_000)
    (large,) = await served.remote.run([part(*values)])
    assert np.frombuffer(large["OUT"].data, np.int32).sum() == 2 * sum(values)


async def test_refusals_are_the_batchers_own(served: Served) -> None:
    served.worker.holding = True
    running = asyncio.ensure_future(served.remote.run([part(1)]))
    await until(lambda: served.worker.held)
    queued = [asyncio.ensure_future(served.remote.run([part(2) for _ in range(16)]))]
    await until(lambda: served.batcher.waiting == 16)
    with pytest.raises(QueueFullError, match="Exceeds maximum queue size") as raised:
        await served.remote.run([part(3)])
    assert raised.value.metadata["limit"] == "16"
    served.worker.sink.failed(served.worker.held.pop(), ExecutionFailedError("it broke", model="double"))
    with pytest.raises(ExecutionFailedError, match="it broke"):
        await running
    queued[0].cancel()
    await asyncio.gather(*queued, return_exceptions=True)
    del served.session.models[1]
    with pytest.raises(ModelNotReadyError):
        await served.remote.run([part(3)])


async def test_requests_of_a_front_wait_for_room(served: Served) -> None:
    served.worker.holding = True
    running = asyncio.ensure_future(served.remote.run([part(1)]))
    await until(lambda: served.worker.held)
    queued = [asyncio.ensure_future(served.remote.run([part(2) for _ in range(16)]))]
    waiting = [asyncio.ensure_future(served.remote.run([part(number)], wait=True)) for number in (3, 4)]
    await until(lambda: served.batcher.active == 4)
    waiting[0].cancel()
    await until(lambda: served.batcher.active == 3)
    assert served.batcher.waiting == 16
    served.worker.holding = False
    served.worker.finish()
    await asyncio.gather(running, *queued)
    assert np.frombuffer((await waiting[1])[0]["OUT"].data, np.int32).tolist() == [8]
    await asyncio.gather(waiting[0], return_exceptions=True)


async def test_whoever_is_cancelled_leaves_queue_and_worker(served: Served) -> None:
    served.worker.holding = True
    running = asyncio.ensure_future(served.remote.run([part(1)]))
    await until(lambda: served.worker.held)
    waiting = asyncio.ensure_future(served.remote.run([part(2)]))
    await until(lambda: served.batcher.waiting == 1)
    for task in (waiting, running):
        task.cancel()
    await until(lambda: served.batcher.active == 0)
    assert (served.batcher.waiting, served.worker.cancelled, served.session.active) == (0, 1, 0)
    assert served.statistics.failures["CANCELED"] == 2
    assert served.remote.active == 0
    await asyncio.gather(waiting, running, return_exceptions=True)


async def test_a_front_that_dies_takes_its_requests_along(served: Served) -> None:
    served.worker.holding = True
    running = asyncio.ensure_future(served.remote.run([part(1)]))
    await until(lambda: served.worker.held)
    ticket = served.remote_generator.submit(PROMPT, Sampling(max_tokens=4))
    await ticket.admitted()
    served.front.close()
    await until(lambda: served.batcher.active == 0 and served.generator.tickets[0].closed)
    assert (served.session.active, served.session.models) == (0, {})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_news_of_a_request_for_text_come_until_its_last_sample_ends(served: Served) -> None:
    ticket = served.remote_generator.submit(PROMPT, Sampling(max_tokens=4, n=2))
    await ticket.admitted()
    (engine,) = served.generator.tickets
    assert (engine.prompt, engine.sampling.n) == (PROMPT.tolist(), 2)
    engine.push(Started(9, 2), Tokens(9, 0, (5,)))
    assert [type(event) for event in await ticket.events()] == [Started, Tokens]
    ticket.end(1)
    await until(lambda: engine.ended == [1])
    engine.push(Tokens(9, 0, (6,), finish="stop", eos=True))
    (last,) = await ticket.events()
    assert isinstance(last, Tokens)
    assert (last.token_ids, last.finish, last.eos) == ((6,), "stop", True)
    assert served.remote_generator.active == 0
    await until(lambda: engine.closed)
    ticket.close()
    assert served.session.active == 0


async def test_a_full_queue_is_told_before_anything_else(served: Served) -> None:
    served.generator.refuse = QueueFullError("Exceeds maximum queue size", model="llm")
    ticket = served.remote_generator.submit(PROMPT, Sampling(max_tokens=4))
    with pytest.raises(QueueFullError, match="Exceeds maximum queue size"):
        await ticket.admitted()
    ticket.close()
    assert served.remote_generator.active == 0


async def test_a_full_queue_refuses_before_there_is_a_stream(served: Served) -> None:
    model = unpack_model(2, pack_model(served.session.models[2]), served.requests)
    generating = Generating(Tokenizing(threads=1))
    served.generator.refuse = QueueFullError("Exceeds maximum queue size", model="llm")
    with pytest.raises(QueueFullError, match="Exceeds maximum queue size"):
        await generating.start(model, Prompt(token_ids=(1, 2)), options(max_tokens=3))
    served.generator.refuse = None
    assert model.generator is not None
    assert (model.active, take(model.generator.statistics)) == (0, {})
    served.generator.script = [5, 6, 7]
    async with await generating.start(model, Prompt(token_ids=(1, 2)), options(max_tokens=3)) as stream:
        ids = [token for delta in [delta async for delta in stream] for token in delta.token_ids]
    assert ids == [5, 6, 7]
    assert take(model.generator.statistics)["finished"] == {"length": 1}
    generating.tokenizing.close()


async def test_a_closed_ticket_frees_the_engine_and_wakes_its_reader(served: Served) -> None:
    ticket = served.remote_generator.submit(PROMPT, Sampling(max_tokens=4))
    await ticket.admitted()
    reading = asyncio.ensure_future(ticket.events())
    await asyncio.sleep(0)
    ticket.close()
    ticket.close()
    with pytest.raises(CancelledError):
        await reading
    await until(lambda: served.generator.tickets[0].closed)
    assert served.remote_generator.active == 0


async def test_an_error_comes_after_the_news_before_it(served: Served) -> None:
    ticket = served.remote_generator.submit(PROMPT, Sampling(max_tokens=4))
    await ticket.admitted()
    (engine,) = served.generator.tickets
    engine.push(Tokens(9, 0, (5,)))
    engine.fail(ExecutionFailedError("it broke"))
    await until(lambda: served.session.active == 0)
    assert len(await ticket.events()) == 1
    with pytest.raises(ExecutionFailedError, match="it broke"):
        await ticket.events()


async def test_a_model_is_the_same_in_a_front(served: Served) -> None:
    for number, model in served.session.models.items():
        found = unpack_model(number, pack_model(model), served.requests)
        for name in ("name", "version", "task", "config", "inputs", "outputs", "max_batch_size", "default"):
            assert getattr(found, name) == getattr(model, name), name
        assert found.statistics is not model.statistics
        assert (found.batcher is None, found.generator is None) == (number == 2, number == 1)
        assert counters(found) is (found.statistics if number == 1 else found.generator.statistics)  # type: ignore[union-attr]
    remote = unpack_model(1, pack_model(served.session.models[1]), served.requests)
    assert remote.batcher is not None
    assert remote.batcher.policy == served.policy
    assert len(await remote.batcher.run([part(4)])) == 1


async def test_lookups_in_a_front_end_as_in_the_core(served: Served) -> None:
    model = served.session.models[1]
    entries = {
        "double": Entry(
            "double", generation=Generation(versions={3: VersionStatus(State.READY, model=model)})
        ),
        "new": Entry("new", whole=VersionStatus(State.LOADING)),
        "gone": Entry(
            "gone", generation=Generation(versions={1: VersionStatus(State.UNAVAILABLE, UNLOADED)})
        ),
        "broken": Entry("broken", whole=VersionStatus(State.UNAVAILABLE, "no file")),
    }
    copy = read(describe(entries, lambda _: 7), {7: model})
    assert list(copy) == list(entries)
    assert lookup.find(copy, "double", "") is model
    assert [list(entry.index()) for entry in copy.values()] == [
        list(entry.index()) for entry in entries.values()
    ]
    for name, version in (
        ("new", ""),
        ("gone", ""),
        ("gone", "1"),
        ("broken", ""),
        ("no", ""),
        ("double", "4"),
    ):
        with pytest.raises((ModelNotFoundError, ModelNotReadyError)) as expected:
            lookup.find(entries, name, version)
        with pytest.raises(type(expected.value)) as found:
            lookup.find(copy, name, version)
        assert str(found.value) == str(expected.value)
