"""The generator and its instances over real sockets; the worker's end is played by the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from engine_peer import Peer
from waiting import until

from headrace.runtimes import wire
from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.messages import Accepted, Event, Rejected, Started, Tokens
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.errors import (
    CancelledError,
    ExecutionFailedError,
    InvalidArgumentError,
    LoadFailedError,
    ModelNotReadyError,
    QueueFullError,
    WorkerCrashedError,
)
from headrace.server.scheduling.generating import MOST_SENDS, EngineGenerator
from headrace.server.scheduling.tickets import RequestTicket
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.workers.generation import GenerationInstance
from headrace.server.workers.process import WorkerProcess
from headrace.server.workers.supervised import RestartPolicy

FAST = RestartPolicy(initial_seconds=0.01, max_seconds=0.02, attempts=3)  # long enough to be seen
PROMPT = np.array([5, 6, 7], np.int32)


@dataclass
class Served:
    """A generator and the peers that its engines were connected to."""

    generator: EngineGenerator
    engines: list[GenerationInstance]
    peers: list[Peer]
    failures: list[str] = field(default_factory=list)
    refusals: int = 0  # restarts that fail

    @property
    def statistics(self) -> GenerationStatistics:
        return self.generator.statistics

    def submit(self, **sampling: Any) -> RequestTicket:
        return self.generator.submit(PROMPT, Sampling(**{"max_tokens": 8, **sampling}))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(
        *, count: int = 1, slots: int = 4, max_queue: int = 16, restarts: RestartPolicy = FAST
    ) -> AsyncIterator[Served]:
        statistics = GenerationStatistics(ModelStatistics(), 64)
        served = Served(EngineGenerator("m", statistics, max_queue), [], [])

        async def connect(process: WorkerProcess[Any], spec: InstanceSpec) -> wire.Loaded:
            if served.refusals:
                served.refusals -= 1
                raise LoadFailedError(f"{spec.model} is broken now")
            ours, theirs = socket.socketpair()
            loop = asyncio.get_running_loop()
            served.peers.append(Peer())
            try:
                await loop.create_connection(lambda: served.peers[-1], sock=theirs)
                await loop.create_connection(lambda: process, sock=ours)
            except BaseException:  # stopped in a restart
                ours.close()
                theirs.close()
                raise
            process._take(wire.Loaded((), (), "peer"))
            return await process._loaded

        def failed(reason: str) -> None:
            served.failures.append(reason)
            served.generator.abort(ModelNotReadyError(f"model 'm' has failed: {reason}", model="m"))

        monkeypatch.setattr(WorkerProcess, "start", connect)
        limits = GenerationSpec(max_tokens=64, max_sequences=slots, kv_tokens=256)
        spec = InstanceSpec(model="m", runtime="peer", path="", generation=limits)
        for _ in range(count):
            engine = GenerationInstance(spec, restarts, on_restart=lambda: None, on_failed=failed)
            await engine.start()
            served.generator.attach(engine)
            served.engines.append(engine)
        yield served
        await asyncio.gather(*(engine.stop() for engine in served.engines))
        for peer in served.peers:
            peer.die()
        await asyncio.sleep(0.01)  # or their sockets outlive the loop

    return run


async def all_tokens(ticket: RequestTicket) -> list[int]:
    found: list[int] = []
    while True:
        for event in await ticket.events():
            if isinstance(event, Tokens):
                found += event.token_ids
                if event.finish is not None:
                    return found


def last(request: int, *ids: int, sample: int = 0) -> Tokens:
    return Tokens(request, sample, ids, finish="length")


async def test_events_reach_their_tickets_in_order_and_only_theirs(serve: Any) -> None:
    async with serve() as served:
        first, second = served.submit(), served.submit()
        (peer,) = served.peers
        await until(lambda: peer.ids("add") == [first.id, second.id])
        assert peer.received[0][2] == PROMPT.tobytes()
        peer.answer(Started(first.id, 2), Started(second.id, 0))
        peer.answer(Tokens(first.id, 0, (1,)), Tokens(second.id, 0, (9,)), Tokens(12345, 0, (0,)))
        peer.answer(Tokens(first.id, 0, (2, 3)), last(second.id, 8))
        await until(lambda: served.generator.active == 1)
        events: Sequence[Event] = await first.events()
        assert [type(event) for event in events] == [Started, Tokens, Tokens]
        peer.answer(last(first.id, 4))
        assert await all_tokens(first) == [4]
        assert await all_tokens(second) == [9, 8]
        assert (served.generator.active, served.generator.waiting) == (0, 0)
        with pytest.raises(RuntimeError, match="has ended"):
            await first.events()
        statistics = served.statistics
        assert (statistics.prompt_tokens, statistics.cached_tokens, statistics.generated_tokens) == (6, 2, 6)
        assert statistics.totals.execution_count == 4
        assert sum(statistics.inter_token_seconds.counts) == 3


async def test_a_request_ends_with_the_last_of_its_samples(serve: Any) -> None:
    async with serve() as served:
        ticket = served.submit(n=2, best_of=3)
        (peer,) = served.peers
        peer.answer(Started(ticket.id, 0), last(ticket.id, 1), Tokens(ticket.id, 1, (2,)))
        assert len(await ticket.events()) == 3
        assert served.generator.active == 1
        peer.answer(last(ticket.id, 3, sample=1))
        await ticket.events()
        assert served.generator.active == 0


async def test_closing_aborts_and_wakes_whoever_waits(serve: Any) -> None:
    async with serve() as served:
        ticket, other = served.submit(), served.submit()
        (peer,) = served.peers
        peer.answer(Started(ticket.id, 0), Tokens(ticket.id, 0, (1,)))
        await ticket.events()
        waiting = asyncio.create_task(ticket.events())
        await asyncio.sleep(0)
        ticket.close()
        ticket.close()
        with pytest.raises(CancelledError):
            await waiting
        with pytest.raises(CancelledError):
            await ticket.events()
        await until(lambda: peer.ids("abort") == [ticket.id])
        peer.answer(Tokens(ticket.id, 0, (2,)), Started(other.id, 0), last(other.id, 7))
        assert await all_tokens(other) == [7]
        other.close()
        await asyncio.sleep(0.01)
        assert peer.ids("abort") == [ticket.id], "a request that has ended needs no abort"
        assert served.generator.active == served.statistics.totals.pending == 0


async def test_samples_are_ended_one_by_one(serve: Any) -> None:
    async with serve() as served:
        ticket = served.submit(n=3, best_of=3)
        (peer,) = served.peers
        peer.answer(Started(ticket.id, 0), *(Tokens(ticket.id, sample, (1,)) for sample in range(3)))
        await ticket.events()
        ticket.end(1)
        ticket.end(1)
        peer.answer(Tokens(ticket.id, 1, (2,), finish="stop"), last(ticket.id, 3))
        assert [event.sample for event in await ticket.events()] == [0], "sample 1 has ended"
        ticket.end(0)  # it has ended by itself
        assert served.generator.active == 1
        assert served.statistics.generated_tokens == 4
        ticket.end(2)
        assert served.generator.active == served.statistics.totals.pending == 0
        ticket.close()
        sent = [[ticket.id, 1], [ticket.id, -1]]
        await until(lambda: [message[1:] for message in peer.received if message[0] == "abort"] == sent)


async def test_refusals_become_errors_after_what_came_before(serve: Any) -> None:
    async with serve() as served:
        invalid, broken = served.submit(), served.submit()
        (peer,) = served.peers
        peer.answer(
            Rejected(invalid.id, "invalid", "the grammar is wrong"),
            Started(broken.id, 0),
            Tokens(broken.id, 0, (1,)),
            Rejected(broken.id, "execution", "out of memory"),
        )
        with pytest.raises(InvalidArgumentError, match="the grammar is wrong"):
            await invalid.events()
        assert len(await broken.events()) == 2
        with pytest.raises(ExecutionFailedError, match="out of memory"):
            await broken.events()
        assert (served.generator.active, served.generator.waiting, served.generator.running) == (0, 0, 0)


async def test_requests_are_refused_once_as_many_wait_as_may(serve: Any) -> None:
    async with serve(slots=2, max_queue=3) as served:
        tickets = [served.submit() for _ in range(5)]  # two may run, three may wait
        with pytest.raises(QueueFullError, match="Exceeds maximum queue size"):
            served.submit()
        (peer,) = served.peers
        peer.answer(Started(tickets[0].id, 0), Started(tickets[1].id, 0))
        await until(lambda: served.generator.waiting == 3)
        with pytest.raises(QueueFullError):
            served.submit()
        tickets[4].close()
        tickets.append(served.submit())
        peer.answer(last(tickets[0].id, 1))
        await until(lambda: served.generator.active == 4)
        served.submit()
        with pytest.raises(QueueFullError):
            served.submit()
        assert served.statistics.refused == 3
        assert served.statistics.totals.failures["REJECTED"] == 3


async def test_requests_go_to_the_engine_with_the_least_work(serve: Any) -> None:
    async with serve(count=2) as served:
        long, short, next_one = (served.submit(max_tokens=50), served.submit(), served.submit())
        first, second = served.peers
        await until(lambda: second.ids("add") == [short.id, next_one.id])
        assert first.ids("add") == [long.id]
        long.close()
        served.submit()
        await until(lambda: len(first.ids("add")) == 2)


async def test_a_dead_engine_ends_what_it_had_started_and_serves_the_rest_again(serve: Any) -> None:
    async with serve() as served:
        begun, reading, queued = served.submit(), served.submit(), served.submit(min_tokens=1)
        (peer,) = served.peers
        peer.answer(Started(begun.id, 0), Started(reading.id, 0), Tokens(begun.id, 0, (1,)))
        assert len(await reading.events()) == 1
        task = asyncio.create_task(reading.events())
        peer.answer(Accepted(queued.id))
        assert isinstance((await queued.events())[0], Accepted)
        peer.die()
        with pytest.raises(WorkerCrashedError) as caught:
            await task
        assert caught.value.message == (
            "the worker process of model 'm' ended while it ran this request; it is being restarted, the "
            "request may be sent again"
        )
        assert len(await begun.events()) == 2
        with pytest.raises(WorkerCrashedError):
            await begun.events()
        await until(lambda: len(served.peers) == 2 and served.peers[1].ids("add") == [queued.id])
        late = served.submit()
        again = served.peers[1]
        assert again.received[0][2:] == next(m for m in peer.received if m[1] == queued.id)[2:]
        again.answer(Accepted(queued.id), Started(queued.id, 0), last(queued.id, 4))
        events = await queued.events()
        assert [type(event) for event in events] == [Started, Tokens], "it had been told of the grammar"
        again.answer(Started(late.id, 0), last(late.id, 5))
        assert await all_tokens(late) == [5]
        assert served.generator.active == 0
        (stats,) = served.generator.stats
        assert (stats.generated_tokens, stats.steps) == (3, 4), "totals go on over a restart"


async def test_another_engine_takes_over_at_once(serve: Any) -> None:
    async with serve(count=2, restarts=RestartPolicy(initial_seconds=60.0)) as served:
        ticket = served.submit()
        first, second = served.peers
        await until(lambda: first.ids("add") == [ticket.id])
        first.die()
        await until(lambda: second.ids("add") == [ticket.id])
        second.answer(Started(ticket.id, 0), last(ticket.id, 3))
        assert await all_tokens(ticket) == [3]


async def test_requests_wait_while_no_engine_is_there(serve: Any) -> None:
    async with serve(slots=2, max_queue=1) as served:
        served.peers[0].die()
        await until(lambda: not served.engines[0].ready)
        ticket = served.submit()
        with pytest.raises(QueueFullError):
            served.submit()
        left = ticket.id + 1
        await until(lambda: len(served.peers) == 2 and served.peers[1].ids("add") == [ticket.id])
        gone = served.submit()
        assert gone.id == left
        served.peers[1].die()
        await until(lambda: not served.engines[0].ready)
        gone.close()
        await until(lambda: len(served.peers) == 3 and served.peers[2].ids("add") == [ticket.id])
        assert served.peers[2].ids("abort") == []


async def test_a_request_that_may_be_what_kills_engines_is_not_sent_for_ever(serve: Any) -> None:
    async with serve(restarts=RestartPolicy(initial_seconds=0.001, attempts=100)) as served:
        ticket = served.submit()
        for sends in range(1, MOST_SENDS + 1):
            await until(lambda n=sends: len(served.peers) == n and served.peers[-1].ids("add") == [ticket.id])  # type: ignore[misc]
            served.peers[-1].die()
        with pytest.raises(WorkerCrashedError, match="ended 3 times before it began with this request"):
            await ticket.events()


async def test_a_model_that_is_given_up_says_why_to_all(serve: Any) -> None:
    async with serve() as served:
        waiting = [served.submit() for _ in range(3)]
        served.refusals = 100
        served.peers[0].die()
        for ticket in waiting:
            with pytest.raises(
                ModelNotReadyError, match="model 'm' has failed: the worker process died 4 times in a row"
            ):
                await ticket.events()
        with pytest.raises(ModelNotReadyError, match="died 4 times"):
            served.submit()
        assert served.failures == ["the worker process died 4 times in a row"]
        assert served.generator.active == 0


async def test_an_engine_that_generates_is_restarted_without_end(serve: Any) -> None:
    async with serve(restarts=RestartPolicy(initial_seconds=0.01, attempts=1)) as served:
        for lives in range(1, 6):
            await until(lambda n=lives: len(served.peers) == n and served.engines[0].ready)  # type: ignore[misc]
            ticket = served.submit()
            served.peers[-1].answer(Started(ticket.id, 0), last(ticket.id, 1))
            assert await all_tokens(ticket) == [1]
            served.peers[-1].die()
            await until(lambda: not served.engines[0].ready)
        assert not served.failures


async def test_draining_lets_admitted_requests_end(serve: Any) -> None:
    async with serve() as served:
        ticket, leaving = served.submit(), served.submit()
        draining = asyncio.create_task(served.generator.drain(ModelNotReadyError("gone", model="m")))
        await asyncio.sleep(0)
        with pytest.raises(ModelNotReadyError, match="gone"):
            served.submit()
        served.peers[0].answer(Started(ticket.id, 0), last(ticket.id, 1))
        assert await all_tokens(ticket) == [1]
        assert not draining.done()
        leaving.close()
        await draining


async def test_ten_thousand_requests_that_left_leave_nothing(serve: Any) -> None:
    async with serve(max_queue=20_000) as served:
        for turn in range(10):
            tickets = [served.submit() for _ in range(1000)]
            served.peers[0].answer(*(Started(ticket.id, 0) for ticket in tickets[::2]))
            await until(lambda: served.generator.running == 500)
            for ticket in tickets:
                ticket.close()
            assert len(served.peers[0].ids("add")) <= 1000 * (turn + 1)
        generator = served.generator
        books = (generator._tickets, generator._unsent, *(s.tickets for s in generator._seats.values()))
        assert [len(book) for book in books] == [0, 0, 0]
        assert [seat.tokens for seat in generator._seats.values()] == [0]
        assert (generator._waiting, generator._running, served.statistics.totals.pending) == (0, 0, 0)
        await until(lambda: len(served.peers[0].ids("abort")) == 10_000)
