"""Parts that come back to the queue: of a batch with invalid values, and of a worker that died."""

from __future__ import annotations

import asyncio

import pytest
from doubler import Doubler, build, part, settle, start
from waiting import until

from headrace.server.errors import QueueTimeoutError, TensorRefusedError, WorkerCrashedError
from headrace.server.scheduling.policy import QueuePolicy


async def run_all(worker: Doubler) -> list[list[int]]:
    """Run batches as long as there are any; return the rows of each of their parts."""
    rows = []
    await settle()
    while worker.held:
        rows.append([each.rows for each in worker.finish().parts])
        await settle()
    return rows


async def test_a_request_with_invalid_values_fails_by_itself() -> None:
    batcher, statistics = build(max_rows=8, max_queue=6)
    worker = Doubler(batcher)
    batcher.attach(worker)
    tasks = [start(batcher, [part(value), part(value, 5)]) for value in (1, -7)]
    gone = start(batcher, [part(9)])
    await settle()
    (first,) = worker.held
    late = [start(batcher, [part(4)]), start(batcher, [part(5)])]
    gone.cancel()
    assert await run_all(worker) == [[1, 2, 1, 2, 1], [1, 2], [1, 2], [1, 1]]
    assert first.parts[0].pending is not None
    assert first.parts[0].pending.queue_ns > 0
    assert [await tasks[0], await late[0], await late[1]] == [[2, 2, 10], [8], [10]]
    with pytest.raises(TensorRefusedError, match="out of bounds: -7"):
        await tasks[1]
    await asyncio.gather(gone, return_exceptions=True)
    assert statistics.success.count == 3
    assert statistics.failures == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 1}
    assert (statistics.inference_count, statistics.execution_count) == (5, 2)
    assert (batcher.active, batcher.waiting) == (0, 0)


async def test_requests_that_run_again_wait_for_nobody_and_keep_their_level() -> None:
    batcher, _ = build(preferred=(2,), delay_us=60_000_000, priority_levels=2, default_level=2)
    worker = Doubler(batcher)
    batcher.attach(worker)
    tasks = [start(batcher, [part(-1)]), start(batcher, [part(2)])]
    await settle()
    urgent = start(batcher, [part(3), part(4)], priority=1)
    assert await run_all(worker) == [[1, 1], [1, 1], [1], [1]]
    assert [await urgent, await tasks[1]] == [[6, 8], [4]]
    with pytest.raises(TensorRefusedError):
        await tasks[0]


@pytest.mark.parametrize("padding", ["all", "none"])
async def test_texts_run_again_by_themselves_too(padding: str) -> None:
    batcher, _ = build(max_rows=8, max_tokens=100, overhead_tokens=10, padding=padding)
    worker = Doubler(batcher)
    batcher.attach(worker)
    tasks = [start(batcher, [part(value, tokens=5), part(7, tokens=5)]) for value in (1, -2, 3)]
    assert await run_all(worker) == [[1] * 6, [1] * 2, [1] * 2, [1] * 2]
    assert [await tasks[0], await tasks[2]] == [[2, 14], [6, 14]]
    with pytest.raises(TensorRefusedError):
        await tasks[1]


@pytest.mark.parametrize("delay", [False, True])
async def test_returned_parts_keep_what_is_left_of_their_timeout(delay: bool) -> None:
    batcher, _ = build(max_rows=1, queue=QueuePolicy(default_timeout_us=20_000, delay=delay))
    worker = Doubler(batcher, slots=2)
    batcher.attach(worker)
    tasks = [start(batcher, [part(index)]) for index in range(2)]
    await settle()
    assert worker.batches == 2
    worker.slots = 0  # until it has started again
    worker.crash()
    if delay:
        await until(lambda: batcher._waiting._delayed)
        worker.slots = 1
        batcher.schedule()
        assert await run_all(worker) == [[1]]
        assert await tasks[1] == [2]
    else:
        with pytest.raises(QueueTimeoutError):
            await tasks[1]
    with pytest.raises(WorkerCrashedError):
        await tasks[0]
    assert batcher.waiting == 0


async def test_a_run_that_is_repeated_is_not_waiting() -> None:
    batcher, _ = build(queue=QueuePolicy(default_timeout_us=60_000_000))
    worker = Doubler(batcher)
    batcher.attach(worker)
    parts = [part(1), part(-1)]
    tasks = [start(batcher, [each]) for each in parts]
    await settle()
    before = [each.expires for each in parts]
    worker.finish()
    assert all(
        late > early and each.timer is not None and each.timer.when() == late
        for early, late, each in zip(before, [each.expires for each in parts], parts, strict=True)
    )
    await run_all(worker)
    await asyncio.gather(*tasks, return_exceptions=True)
