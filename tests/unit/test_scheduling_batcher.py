"""The batcher with in-test instances that really compute (sum of the raw bytes of each row)."""

from __future__ import annotations

import asyncio

import pytest
from doubler import Doubler, build, part, settle, start

from headrace.runtimes.wire import Executed, Tensor
from headrace.server.errors import (
    HeadraceError,
    ModelNotReadyError,
    QueueFullError,
    QueueTimeoutError,
    WorkerCrashedError,
)
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.formation import JOINING
from headrace.server.scheduling.gathering import Gathering
from headrace.server.scheduling.policy import BatchingPolicy, QueuePolicy


async def test_requests_that_arrive_together_share_a_batch_and_get_their_own_rows() -> None:
    batcher, statistics = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    tasks = [start(batcher, [part(i, i + 10)]) for i in range(2)]
    await settle()
    batch = worker.finish()
    assert batch.rows == 4
    assert [await task for task in tasks] == [[0, 20], [2, 22]]
    assert statistics.execution_count == 1
    assert statistics.inference_count == 4
    assert statistics.success.count == 2
    assert statistics.pending == 0


async def test_a_request_of_many_parts_is_split_over_batches_and_joined_in_order() -> None:
    batcher, _ = build(max_rows=2)
    worker = Doubler(batcher)
    batcher.attach(worker)
    task = start(batcher, [part(i) for i in range(5)])
    sizes = []
    while not task.done():
        await settle()
        if worker.held:
            sizes.append(worker.finish().rows)
    assert await task == [0, 2, 4, 6, 8]
    assert sizes == [2, 2, 1]


async def test_different_shapes_never_share_a_batch() -> None:
    batcher, _ = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    first, second = start(batcher, [part(1, key="a")]), start(batcher, [part(2, key="b")])
    await settle()
    assert worker.finish().reason == "shape"
    await settle()
    assert worker.finish().rows == 1
    assert (await first, await second) == ([2], [4])


async def test_a_full_queue_refuses_all_parts_of_a_request_at_once() -> None:
    batcher, statistics = build(max_queue=3)
    waiting = start(batcher, [part(1), part(2)])
    await settle()
    with pytest.raises(QueueFullError, match="Exceeds maximum queue size"):
        await batcher.run([part(3), part(4)])
    assert batcher.waiting == 2
    assert statistics.failures["REJECTED"] == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert batcher.waiting == 0


async def test_queue_timeout_rejects_and_delay_action_postpones() -> None:
    reject, _ = build(queue=QueuePolicy(default_timeout_us=1000))
    with pytest.raises(QueueTimeoutError, match="Request timeout expired"):
        await reject.run([part(1)])
    assert reject.waiting == 0
    delay, _ = build(max_rows=1, queue=QueuePolicy(default_timeout_us=1000, delay=True))
    late = start(delay, [part(1)])
    while not delay._waiting._delayed:
        await asyncio.sleep(0.001)
    fresh = start(delay, [part(2)])
    worker = Doubler(delay)
    delay.attach(worker)
    await settle()
    worker.finish()
    assert await fresh == [4]
    assert not late.done()
    await settle()
    worker.finish()
    assert await late == [2]


async def test_a_request_may_shorten_its_timeout_only_where_the_policy_lets_it() -> None:
    policy = BatchingPolicy(queue=QueuePolicy(default_timeout_us=1000, allow_override=True))
    assert policy.timeout_us(1, 500) == 500
    assert policy.timeout_us(1, 2000) == 1000
    assert BatchingPolicy().timeout_us(1, 500) == 0


async def test_urgent_requests_overtake() -> None:
    batcher, _ = build(max_rows=1, priority_levels=2, default_level=2)
    low, high = start(batcher, [part(1)]), start(batcher, [part(2)], priority=1)
    await settle()
    worker = Doubler(batcher)
    batcher.attach(worker)
    await settle()
    worker.finish()
    assert await high == [4]
    assert not low.done()
    await settle()
    worker.finish()
    assert await low == [2]


async def test_preferred_sizes_wait_for_the_delay_and_no_longer() -> None:
    batcher, statistics = build(max_rows=8, preferred=(2,), delay_us=20_000)
    worker = Doubler(batcher)
    batcher.attach(worker)
    pair = [start(batcher, [part(1)]), start(batcher, [part(2)])]
    await settle()
    assert worker.finish().reason == "preferred"
    await asyncio.gather(*pair)
    single = start(batcher, [part(3)])
    await settle()
    assert not worker.held
    while not worker.held:
        await asyncio.sleep(0.005)
    assert worker.finish().reason == "delay"
    assert await single == [6]
    assert statistics.close_reasons == {"preferred": 1, "delay": 1}


async def test_cancelled_requests_leave_the_queue_and_stop_a_batch_nobody_waits_for() -> None:
    batcher, statistics = build(max_rows=2)
    worker = Doubler(batcher)
    batcher.attach(worker)
    running = [start(batcher, [part(1)]), start(batcher, [part(2)])]
    await settle()
    queued = start(batcher, [part(3)])
    await settle()
    queued.cancel()
    running[0].cancel()
    await settle()
    assert batcher.waiting == 0
    assert not worker.cancelled, "the other half of the batch is still wanted"
    running[1].cancel()
    await settle()
    assert worker.cancelled == worker.held
    worker.finish()
    await settle()
    assert batcher.active == 0
    assert statistics.failures["CANCELED"] == 3


async def test_a_crash_fails_what_ran_and_keeps_what_waited() -> None:
    batcher, _ = build(max_rows=1)
    worker = Doubler(batcher, slots=2)
    batcher.attach(worker)
    tasks = [start(batcher, [part(i)]) for i in range(3)]
    await settle()
    assert worker.batches == 2
    worker.crash()
    with pytest.raises(WorkerCrashedError):
        await tasks[0]
    await settle()
    worker.finish()
    await settle()
    worker.finish()
    assert [await task for task in tasks[1:]] == [[2], [4]]


async def test_the_second_slot_only_takes_batches_that_cannot_improve() -> None:
    batcher, _ = build(max_rows=2)
    worker = Doubler(batcher, slots=2)
    batcher.attach(worker)
    tasks = [start(batcher, [part(1)])]
    await settle()
    tasks.append(start(batcher, [part(2)]))
    await settle()
    assert worker.batches == 1
    tasks.append(start(batcher, [part(3)]))
    await settle()
    assert [batch.rows for batch in worker.held] == [1, 2]
    worker.finish()
    worker.finish()
    await asyncio.gather(*tasks)


async def test_lone_batches_use_all_threads_and_others_do_not() -> None:
    batcher, _ = build(max_rows=1)
    workers = [Doubler(batcher), Doubler(batcher, lone_capable=True)]
    for worker in workers:
        batcher.attach(worker)
    alone = start(batcher, [part(1)])
    await settle()
    assert workers[1].held[0].lone
    second = start(batcher, [part(2)])
    await settle()
    assert not workers[0].held[0].lone
    for worker in workers:
        worker.finish()
    await asyncio.gather(alone, second)


async def test_batches_know_whether_other_instances_run() -> None:
    batcher, _ = build(max_rows=1)
    workers = [Doubler(batcher), Doubler(batcher)]
    for worker in workers:
        batcher.attach(worker)
    together = [start(batcher, [part(1)]), start(batcher, [part(2)])]
    await settle()
    assert [worker.held[0].beside for worker in workers] == [True, True]
    workers[0].finish()
    third = start(batcher, [part(3)])
    await settle()
    assert workers[0].held[0].beside
    for worker in workers:
        worker.finish()
    await asyncio.gather(*together, third)
    alone = start(batcher, [part(4)])
    await settle()
    assert [batch.beside for batch in workers[0].held] == [False]
    workers[0].finish()
    await alone


async def batches_of(batcher: Batcher, lengths: list[int]) -> list[list[int]]:
    """Have texts of these lengths wait, then run one batch after another; return the lengths in each."""
    tasks = [start(batcher, [part(length, tokens=length)]) for length in lengths]
    await settle()
    worker = Doubler(batcher)
    batcher.attach(worker)
    seen = []
    while not all(task.done() for task in tasks):
        await settle()
        if worker.held:
            seen.append([each.tokens for each in worker.finish().parts])
    assert [await task for task in tasks] == [[2 * length] for length in lengths]
    return seen


async def test_texts_are_batched_with_those_of_like_length() -> None:
    batcher, _ = build(max_rows=8, max_tokens=100, overhead_tokens=10)
    # five of them are over 100 tokens, and three and two are padded less than four and one
    lengths = [20, 90, 22, 21, 95, 19, 23]
    assert await batches_of(batcher, lengths) == [[19, 20, 21], [90], [22, 23], [95]]


async def test_packed_texts_only_keep_apart_what_attention_would_pay_for() -> None:
    batcher, _ = build(max_rows=8, max_tokens=150, overhead_tokens=6, padding="attention")
    # a row of 20 laid out beside one of 120 costs attention 14 tokens more, and beside one of 40 only 1
    assert await batches_of(batcher, [20, 120, 40, 21, 10]) == [[10, 20, 21, 40], [120]]
    # five of 50 have more than 150 tokens of their own
    batcher, _ = build(max_rows=8, max_tokens=150, overhead_tokens=6, padding="attention")
    assert await batches_of(batcher, [50] * 5) == [[50] * 3, [50] * 2]


async def test_texts_whose_padding_is_free_are_batched_in_order_of_arrival() -> None:
    batcher, _ = build(max_rows=4, max_tokens=100, overhead_tokens=10, padding="none")
    lengths = [20, 70, 30, 5, 5, 5, 5, 5, 200, 1]
    assert await batches_of(batcher, lengths) == [[20, 70], [30, 5, 5, 5], [5, 5], [200], [1]]


async def test_only_older_texts_join_a_batch() -> None:
    batcher, _ = build(max_rows=64, max_tokens=512, overhead_tokens=10)
    seen = await batches_of(batcher, [100, *[10] * 20, *[101] * 8])
    assert seen[0] == [100]  # the others of its length came too late
    assert seen[1] == [10] * 20  # those behind the twelve oldest overtake nobody
    assert len(seen[1]) > JOINING


async def test_drain_waits_for_admitted_requests_and_refuses_new_ones() -> None:
    batcher, _ = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    task = start(batcher, [part(1)])
    await settle()
    error: HeadraceError = ModelNotReadyError("going")
    drained = asyncio.get_running_loop().create_task(batcher.drain(error))
    await settle()
    assert not drained.done()
    with pytest.raises(ModelNotReadyError):
        await batcher.run([part(2)])
    worker.finish()
    assert await task == [2]
    await drained


async def test_an_output_without_the_batch_dimension_is_the_models_error() -> None:
    batcher, _ = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    tasks = [start(batcher, [part(i)]) for i in range(2)]
    await settle()
    batch = worker.held.pop()
    reply = Executed(0, (Tensor("OUT", "INT32", (1,), 0, 4),), 4, None, 0, 0, 0)
    batcher.executed(batch, reply, memoryview(bytes(4)))
    for task in tasks:
        with pytest.raises(HeadraceError, match="does not keep the batch dimension"):
            await task


async def test_texts_go_ahead_to_a_busy_instance_when_newcomers_could_not_join() -> None:
    batcher, _ = build(max_rows=64, max_tokens=512, overhead_tokens=10)
    worker = Doubler(batcher, slots=2)
    batcher.attach(worker)
    tasks = [start(batcher, [part(1, tokens=20)])]
    await settle()
    lengths = [10, 40] * (JOINING // 2)
    tasks += [start(batcher, [part(1, tokens=length)]) for length in lengths[1:]]
    await settle()
    assert worker.batches == 1  # one more could join the batch
    tasks.append(start(batcher, [part(1, tokens=10)]))
    await settle()
    assert [len(batch.parts) for batch in worker.held] == [1, JOINING // 2]
    while worker.held:
        worker.finish()
        await settle()
    await asyncio.gather(*tasks)


async def test_the_loop_is_not_polled_for_more_while_all_instances_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []

    def more(_: Gathering, now: int, waiting: int, active: int) -> bool:
        looked.append(waiting)
        return len(looked) < 9 and now > 0 and active > 0

    monkeypatch.setattr(Gathering, "more", more)
    batcher, _ = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    first = start(batcher, [part(1)])
    await settle()
    assert looked == [1] * 9
    others = [start(batcher, [part(value)]) for value in (2, 3)]
    await settle()
    assert looked == [1] * 9
    worker.finish()
    await settle()
    assert looked == [1] * 9 + [2]  # until the instance was done
    assert worker.finish().rows == 2
    assert [await task for task in (first, *others)] == [[2], [4], [6]]


async def with_a_lone_caller() -> tuple[Batcher, Doubler]:
    """A batcher that has had one request at a time for long, and its instance."""
    batcher, _ = build()
    worker = Doubler(batcher)
    batcher.attach(worker)
    for _ in range(16):
        task = start(batcher, [part(1)])
        await settle()
        worker.finish()
        assert await task == [2]
    return batcher, worker


async def test_a_lone_caller_waits_for_no_turn_of_the_loop() -> None:
    batcher, worker = await with_a_lone_caller()
    first = start(batcher, [part(2), part(3)])
    await asyncio.sleep(0)
    assert len(worker.held) == 1
    # two that come together while it runs share a batch, as before
    others = [start(batcher, [part(value)]) for value in (4, 5)]
    await settle()
    assert worker.finish().rows == 2
    await settle()
    assert worker.finish().rows == 2
    assert [await task for task in (first, *others)] == [[4, 6], [8], [10]]
    others = [start(batcher, [part(value)]) for value in (6, 7)]
    await settle()
    assert worker.finish().rows == 2
    assert [await task for task in others] == [[12], [14]]


async def test_two_callers_of_one_instance_share_batches_again_after_a_lone_one() -> None:
    batcher, worker = await with_a_lone_caller()
    rows = []
    for _ in range(2):
        tasks = [start(batcher, [part(value)]) for value in (2, 3)]
        while not all(task.done() for task in tasks):
            await settle()
            if worker.held:
                rows.append(worker.finish().rows)
    assert rows == [1, 1, 2]
