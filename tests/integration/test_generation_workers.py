"""Generation engines in real worker processes: deaths, unloading, callers that leave, full queues."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import until

from headrace.runtimes.generation.messages import Started, Tokens
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.errors import ModelNotReadyError, QueueFullError, WorkerCrashedError
from headrace.server.repository.check import check
from headrace.server.repository.factory import RunningModels
from headrace.server.repository.instances import Machine
from headrace.server.repository.model import Model
from headrace.server.repository.registry import Repository
from headrace.server.scheduling.generator import Ticket
from headrace.server.workers.supervised import RestartPolicy

FAST = RestartPolicy(initial_seconds=0.01, attempts=3)
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
LONG = Sampling(max_tokens=4000, temperature=0.0, ignore_eos=True)
SHORT = Sampling(max_tokens=12, temperature=0.0)
ANSWER = "The capital of France is Paris."


class Served:
    """A repository with the one model."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    @property
    def model(self) -> Model:
        return self.repository.get("smollm2")

    @property
    def prompt(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        settings = self.model.generation
        assert settings is not None
        return np.array(settings.tokenizer.encode(PROMPT).ids, np.int32)

    def submit(self, sampling: Sampling) -> Ticket:
        generator = self.model.generator
        assert generator is not None
        return generator.submit(self.prompt, sampling)

    async def text(self, ticket: Ticket) -> str:
        settings = self.model.generation
        assert settings is not None
        return settings.tokenizer.decode(await rest(ticket))


@asynccontextmanager
async def serve(
    root: Path, *, restarts: RestartPolicy = FAST, groups: int = 1, **parameters: int
) -> AsyncIterator[Served]:
    repository = Repository([root], RunningModels(1024, restarts), Machine(2), load_models=[])
    await repository.start()
    values = {"task": "generate", "max_tokens": "4096", **{key: str(n) for key, n in parameters.items()}}
    config = {
        "parameters": {key: {"string_value": value} for key, value in values.items()},
        "instance_group": [{"count": groups}],
    }
    await repository.load("smollm2", config=json.dumps(config))
    try:
        yield Served(repository)
    finally:
        await repository.stop()
        assert workers() == []


def workers() -> list[int]:
    """Process ids of this test's workers."""
    found: list[int] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ends just now
            if "headrace.runtimes.worker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


async def begun(ticket: Ticket) -> None:
    """Read until the first token is there."""
    while not any(isinstance(event, Tokens) for event in await ticket.events()):
        pass


async def rest(ticket: Ticket) -> list[int]:
    """Read to the end."""
    found: list[int] = []
    while True:
        for event in await ticket.events():
            if isinstance(event, Tokens):
                found += event.token_ids
                if event.finish is not None:
                    return found


async def test_a_killed_engine_ends_its_streams_and_serves_what_had_waited(demo_repository: Path) -> None:
    async with serve(demo_repository, max_sequences=2) as served:
        (pid,) = workers()
        streams = [served.submit(LONG) for _ in range(2)]
        for stream in streams:
            await begun(stream)
        queued = [served.submit(SHORT) for _ in range(3)]
        generator = served.model.generator
        assert generator is not None
        assert (generator.running, generator.waiting) == (2, 3)
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(WorkerCrashedError, match="'smollm2' ended while it ran this request"):
                await rest(stream)
        assert [await served.text(ticket) for ticket in queued] == [ANSWER] * 3
        assert workers() != [pid]
        assert generator.active == 0
        assert served.model.statistics.restarts == 1


async def test_another_instance_takes_what_a_dead_one_had_not_begun(demo_repository: Path) -> None:
    async with serve(
        demo_repository, groups=2, max_sequences=1, restarts=RestartPolicy(initial_seconds=600)
    ) as served:
        first, _ = workers()
        streams = [served.submit(LONG) for _ in range(2)]
        for stream in streams:
            await begun(stream)
        queued = [served.submit(SHORT) for _ in range(2)]  # one for each
        os.kill(first, signal.SIGKILL)
        dead, alive = streams
        with pytest.raises(WorkerCrashedError):
            await rest(dead)
        alive.close()
        assert [await served.text(ticket) for ticket in queued] == [ANSWER] * 2


async def test_a_model_that_is_given_up_says_so(demo_repository: Path) -> None:
    async with serve(demo_repository, restarts=RestartPolicy(attempts=0), max_sequences=1) as served:
        stream, queued = served.submit(LONG), served.submit(SHORT)
        await begun(stream)
        generator = served.model.generator
        assert generator is not None
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(WorkerCrashedError):
            await rest(stream)
        with pytest.raises(ModelNotReadyError, match="'smollm2' has failed: the worker process died"):
            await rest(queued)
        with pytest.raises(ModelNotReadyError, match="has failed"):
            generator.submit(np.ones(1, np.int32), SHORT)
        (entry,) = [entry for entry in served.repository.index(ready=False) if entry.name == "smollm2"]
        assert entry.state == "UNAVAILABLE"
        assert entry.reason.startswith("Internal: the worker process died")


async def test_unloading_lets_admitted_requests_end_and_gives_the_memory_back(demo_repository: Path) -> None:
    async with serve(demo_repository, max_sequences=1) as served:
        settings, generator = served.model.generation, served.model.generator
        assert settings is not None
        assert generator is not None
        tickets = [served.submit(SHORT) for _ in range(3)]
        await begun(tickets[0])
        reading = [asyncio.create_task(rest(ticket)) for ticket in tickets[1:]]
        await served.repository.unload("smollm2")
        assert not served.repository.is_ready("smollm2", "")
        await rest(tickets[0])
        for task in reading:
            assert settings.tokenizer.decode(await task) == ANSWER
        await until(lambda: workers() == [])
        with pytest.raises(ModelNotReadyError, match="is being unloaded"):
            generator.submit(np.ones(1, np.int32), SHORT)


async def test_two_hundred_requests_that_left_free_their_slots(demo_repository: Path) -> None:
    async with serve(demo_repository, max_sequences=4) as served:
        generator = served.model.generator
        assert generator is not None
        (pid,) = workers()
        memory: list[int] = []
        for _ in range(3):
            tickets = [served.submit(LONG) for _ in range(200)]
            await begun(tickets[0])
            for ticket in tickets:
                ticket.close()
            assert await served.text(served.submit(SHORT)) == ANSWER
            await until(lambda: generator.stats[0].free_slots == 4)
            assert generator.active == 0
            memory.append(psutil.Process(pid).memory_info().rss)
        (stats,) = generator.stats
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
        assert memory[2] - memory[1] < 32 * 2**20, memory


async def test_a_full_queue_refuses_at_once(demo_repository: Path) -> None:
    async with serve(demo_repository, max_sequences=1, max_queue=1) as served:
        stream = served.submit(LONG)
        await begun(stream)
        waiting = served.submit(SHORT)
        with pytest.raises(QueueFullError, match="Exceeds maximum queue size"):
            served.submit(SHORT)
        stream.close()
        events = await waiting.events()
        assert isinstance(events[0], Started)
        waiting.close()


async def test_check_describes_such_a_folder(demo_repository: Path) -> None:
    (result,) = await check(demo_repository / "smollm2", RunningModels(16, FAST), Machine(2))
    assert result.ok, result.text
    for line in (
        "version 1: task generate, runtime onnx",
        "platform onnxruntime_onnx, no batching",
        "inputs: text_input BYTES [1]",
        "sequences of up to 8192 tokens, 32 at once",
        "chat templates: default",
        "decoupled: true",
    ):
        assert line in result.text
