"""A full queue: who is refused, who waits for room, and in which order they get it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from doubler import Doubler, build, part, settle, start
from waiting import until

from headrace.server.errors import ModelNotReadyError, QueueFullError, QueueTimeoutError
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import QueuePolicy
from headrace.server.tasks import batching
from headrace.server.tasks.batching import Queueing, run_in_turns


def full(limit: int = 2, **policy: object) -> tuple[Batcher, list[asyncio.Task[list[int]]]]:
    """A batcher without an instance whose queue is full of requests of one part each."""
    batcher, _ = build(max_queue=limit, **policy)
    return batcher, [start(batcher, [part(index)]) for index in range(limit)]


def levels(**queues: int) -> Mapping[int, QueuePolicy]:
    return MappingProxyType({int(name[1:]): QueuePolicy(max_size=size) for name, size in queues.items()})


async def test_who_waits_gets_room_in_order_and_newcomers_do_not_overtake() -> None:
    batcher, queued = full(max_rows=1)
    await settle()
    large = start(batcher, [part(10), part(11)], wait=True)
    small = start(batcher, [part(12)], wait=True)
    await settle()
    assert (batcher.waiting, batcher.active) == (2, 4)
    worker = Doubler(batcher)
    batcher.attach(worker)
    await settle()
    assert batcher.waiting == 1, "there is room for the small one, but the large one is the first"
    with pytest.raises(QueueFullError):
        await batcher.run([part(13)])
    worker.finish()
    await settle()
    assert batcher.waiting == 2
    assert [await task for task in queued[:1]] == [[0]]
    while not small.done():
        worker.finish()
        await settle()
    assert large.done()
    assert [await task for task in (*queued, large, small)] == [[0], [2], [20, 22], [24]]
    late = start(batcher, [part(14)])
    await settle()
    worker.finish()
    assert await late == [28]


async def test_whoever_leaves_makes_way() -> None:
    batcher, queued = full()
    await settle()
    line = [start(batcher, [part(10 + index)], wait=True) for index in range(3)]
    await settle()
    line[0].cancel()
    queued[0].cancel()
    await settle()
    assert batcher.waiting == 2
    line[1].cancel()  # it waits in the queue now
    await settle()
    assert (batcher.waiting, batcher.active) == (2, 2)
    worker = Doubler(batcher)
    batcher.attach(worker)
    await settle()
    assert worker.finish().rows == 2
    assert [await queued[1], await line[2]] == [[2], [24]]
    await asyncio.gather(*queued, *line, return_exceptions=True)


async def test_a_large_request_that_gives_up_makes_way_for_smaller_ones() -> None:
    batcher, queued = full()
    await settle()
    large = start(batcher, [part(10), part(11)], wait=True)
    small = start(batcher, [part(12)], wait=True)
    queued[0].cancel()
    await settle()
    assert batcher.waiting == 1
    large.cancel()
    await settle()
    assert batcher.waiting == 2
    for task in (queued[1], small):
        task.cancel()
    await asyncio.gather(*queued, large, small, return_exceptions=True)
    assert (batcher.waiting, batcher.active) == (0, 0)


async def test_an_expired_part_makes_way_and_the_timeout_begins_in_the_queue() -> None:
    batcher, queued = full(queue=QueuePolicy(default_timeout_us=1000))
    line = start(batcher, [part(10)], wait=True)
    await settle()
    for task in (*queued, line):
        with pytest.raises(QueueTimeoutError):
            await task
    assert batcher.waiting == 0


async def test_a_postponed_part_makes_way_in_its_level() -> None:
    batcher, _ = build(queue=QueuePolicy(max_size=1, default_timeout_us=1000, delay=True), max_rows=1)
    tasks = [start(batcher, [part(1)]), start(batcher, [part(2)], wait=True)]
    await until(lambda: batcher.waiting == 2)
    worker = Doubler(batcher)
    batcher.attach(worker)
    await batcher_done(worker, tasks[0])
    await batcher_done(worker, tasks[1])


async def test_nobody_waits_for_more_room_than_there_is() -> None:
    batcher, statistics = build(max_queue=8, queue=QueuePolicy(max_size=2))
    with pytest.raises(QueueFullError) as raised:
        await batcher.run([part(1), part(2), part(3)], wait=True)
    assert raised.value.metadata == {"waiting": "0", "limit": "2"}
    assert statistics.failures["REJECTED"] == 1


async def test_the_refusal_names_the_limit_that_was_hit() -> None:
    batcher, _ = build(
        max_queue=3, priority_levels=2, default_level=2, level_queues=levels(_1=5, _2=2), max_rows=1
    )
    tasks = [start(batcher, [part(1)]) for _ in range(2)]
    await settle()
    with pytest.raises(QueueFullError) as level:
        await batcher.run([part(2)])
    assert level.value.metadata == {"waiting": "2", "limit": "2"}
    tasks.append(start(batcher, [part(1)], priority=1))
    await settle()
    with pytest.raises(QueueFullError) as whole:
        await batcher.run([part(2)], priority=1)
    assert whole.value.metadata == {"waiting": "3", "limit": "3"}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_urgent_requests_pass_those_of_other_levels_that_wait() -> None:
    batcher, queued = full(priority_levels=2, default_level=2, max_rows=1)
    await settle()
    low = start(batcher, [part(10), part(11)], wait=True)
    await settle()
    high = start(batcher, [part(12)], priority=1, wait=True)
    queued[0].cancel()
    await settle()
    worker = Doubler(batcher)
    batcher.attach(worker)
    await settle()
    worker.finish()
    assert await high == [24]
    assert not low.done()
    await batcher_done(worker, low)
    await asyncio.gather(*queued, return_exceptions=True)


async def test_a_full_level_holds_up_no_other_one() -> None:
    batcher, _ = build(max_queue=8, priority_levels=2, default_level=2, level_queues=levels(_1=1), max_rows=1)
    queued = start(batcher, [part(1)], priority=1)
    await settle()
    line = start(batcher, [part(2)], priority=1, wait=True)
    await settle()
    other = start(batcher, [part(3)])
    await settle()
    assert batcher.waiting == 2
    worker = Doubler(batcher)
    batcher.attach(worker)
    await batcher_done(worker, other)
    assert [await queued, await line] == [[2], [4]]


async def test_abort_fails_who_waits_and_drain_serves_them() -> None:
    batcher, queued = full()
    line = start(batcher, [part(10)], wait=True)
    await settle()
    batcher.abort(ModelNotReadyError("given up"))
    for task in (*queued, line):
        with pytest.raises(ModelNotReadyError, match="given up"):
            await task
    batcher, queued = full()
    line = start(batcher, [part(10)], wait=True)
    await settle()
    drained = asyncio.create_task(batcher.drain(ModelNotReadyError("going")))
    await settle()
    with pytest.raises(ModelNotReadyError):
        await batcher.run([part(3)], wait=True)
    worker = Doubler(batcher)
    batcher.attach(worker)
    await batcher_done(worker, line)
    await drained
    await asyncio.gather(*queued)


async def batcher_done(worker: Doubler, task: asyncio.Task[list[int]]) -> None:
    """Run batches until ``task`` is answered."""
    while not task.done():
        await settle()
        if worker.held:
            worker.finish()
            await asyncio.sleep(0)
    await task


async def in_turns(batcher: Batcher, values: range, *, wait: bool = False) -> list[int]:
    results = await run_in_turns(batcher, [part(value) for value in values], Queueing(wait=wait))
    return [int(np.frombuffer(result["OUT"].data, np.int32)[0]) for result in results]


@pytest.mark.parametrize("limit", [1, 2, 3, 64])
async def test_requests_larger_than_the_queue_go_in_turns(limit: int) -> None:
    batcher, statistics = build(max_queue=limit)
    worker = Doubler(batcher)
    batcher.attach(worker)
    task = asyncio.create_task(in_turns(batcher, range(9)))
    await batcher_done(worker, task)
    assert await task == [2 * value for value in range(9)]
    assert statistics.success.count == -(-9 // limit)


async def test_many_requests_in_turns_share_a_small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_PARTS", 3)
    batcher, _ = build(max_queue=4)
    worker = Doubler(batcher, slots=2)
    batcher.attach(worker)
    tasks = [asyncio.create_task(in_turns(batcher, range(count), wait=True)) for count in range(1, 12)]
    for task in tasks:
        await batcher_done(worker, task)
    assert [await task for task in tasks] == [[2 * i for i in range(count)] for count in range(1, 12)]
    assert (batcher.waiting, batcher.active) == (0, 0)


async def test_the_first_turn_is_refused_and_later_ones_wait() -> None:
    batcher, queued = full(max_rows=2)
    await settle()
    with pytest.raises(QueueFullError):
        await in_turns(batcher, range(5))
    worker = Doubler(batcher)
    batcher.attach(worker)
    await batcher_done(worker, queued[-1])
    turns = asyncio.create_task(in_turns(batcher, range(5)))
    await settle()
    others = [start(batcher, [part(20 + index)]) for index in range(2)]
    await settle()
    worker.finish()
    await until(lambda: batcher.active == 3)
    assert not turns.done(), "its second turn waits behind the others"
    await batcher_done(worker, turns)
    assert await turns == [0, 2, 4, 6, 8]
    assert [await task for task in others] == [[40], [42]]
    await asyncio.gather(*queued)
