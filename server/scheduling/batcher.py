"""The dynamic batcher: admits parts, forms batches, hands them to worker instances, resolves answers.

Everything happens in callbacks of the event loop; there is no task that polls. ``run`` admits and waits,
``_form`` forms batches whenever parts arrive or an instance becomes free, and the instances call
``executed``, ``failed`` and ``returned``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from headrace.server.errors import (
    DeadlineExceededError,
    ExecutionFailedError,
    HeadraceError,
    ModelNotReadyError,
    QueueFullError,
    QueueTimeoutError,
    TensorRefusedError,
    WorkerCrashedError,
)
from headrace.server.scheduling.batch import Batch, split
from headrace.server.scheduling.formation import select
from headrace.server.scheduling.gathering import Gathering
from headrace.server.scheduling.line import Entry, Line
from headrace.server.scheduling.queue import WaitingParts
from headrace.server.scheduling.work import Alone, Part, PartResult, Pending

if TYPE_CHECKING:
    from headrace.runtimes.wire import Executed
    from headrace.server.scheduling.policy import BatchingPolicy
    from headrace.server.telemetry.statistics import ModelStatistics


SPLIT_NS: Final = 1_000_000
"""Work for less than this many nanoseconds is not divided among idle instances: handing a further batch to
another process, and waking up for its reply, would cost more than it saves."""

AT_ONCE_NS: Final = 8_000_000
"""An instance that has just finished gets what waits at once when that is work for so many nanoseconds; of
less it waits for the loop to take in more, because few rows at a time take longer each."""

_SMOOTHING: Final = 0.1  # weight of the newest batch in the average time per row


class Executor(Protocol):
    """One worker instance, as the batcher sees it."""

    @property
    def batches(self) -> int:
        """Batches with the worker now."""

    @property
    def slots(self) -> int:
        """Batches the worker can hold now; 0 while it is not running."""

    @property
    def lone_capable(self) -> bool:
        """Whether the instance has an all-threads form for a batch that runs alone."""

    def send(self, batch: Batch) -> None:
        """Hand a batch over; the outcome comes back by the batcher's callbacks."""

    def cancel(self, batch: Batch) -> None:
        """Tell the worker that nobody waits for a batch it has."""


class Batcher:
    """Queue and batch former of one model version."""

    def __init__(self, policy: BatchingPolicy, statistics: ModelStatistics) -> None:
        """Start with no instances; parts wait until :meth:`attach` brings one."""
        self.policy = policy
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._waiting = WaitingParts(policy)
        self._line = Line(self._waiting)
        self._executors: list[Executor] = []
        self._scheduled = False
        self._gathering = Gathering()
        self._delay_timer: asyncio.TimerHandle | None = None
        self._closed: HeadraceError | None = None
        self._requests = 0
        self._row_ns = float(SPLIT_NS)  # average compute time per row
        self._idle: asyncio.Event | None = None

    @property
    def waiting(self) -> int:
        """Parts that wait in the queue."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests that have been admitted, or wait for room, and are not answered."""
        return self._requests

    async def run(
        self, parts: Sequence[Part], *, priority: int = 0, timeout_us: int = 0, wait: bool = False
    ) -> list[PartResult]:
        """Execute the parts of one request and return their results in order.

        Args:
            parts: admitted all or none.
            priority: 0 for the default level, 1 the most urgent.
            timeout_us: microseconds the request may wait in the queue, where the policy lets it choose.
            wait: for room, in line with others who do, instead of being refused. Newcomers of its level, and
                of less urgent ones, are refused meanwhile.

        Raises:
            QueueFullError: no room for all parts; with ``wait``, the queue never has so much.
            QueueTimeoutError: waited longer than the policy allows.
            WorkerCrashedError: the worker died while it ran a part.
            ExecutionFailedError: the model failed.
            ModelNotReadyError: the model is being unloaded or has failed.
        """
        start = time.monotonic_ns()
        pending = Pending(len(parts), self._loop)
        level = self.policy.level(priority)
        self._admit(pending, parts, level, timeout_us, start, wait=wait)
        self._requests += 1
        self._statistics.pending += 1
        try:
            results = await pending.future
        except BaseException as error:
            self._line.leave(pending, level)
            self._withdraw(parts)
            self._statistics.failed(time.monotonic_ns() - start, _failure_reason(error))
            raise
        else:
            self._count(pending, time.monotonic_ns() - start)
            return results
        finally:
            self._requests -= 1
            self._statistics.pending -= 1
            if self._requests == 0 and self._idle is not None:
                self._idle.set()

    def attach(self, executor: Executor) -> None:
        """Give batches to this instance from now on."""
        self._executors.append(executor)
        self.schedule()

    async def drain(self, error: HeadraceError) -> None:
        """Refuse new requests with ``error`` and wait until the admitted ones are answered."""
        self._closed = error
        if self._requests:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def abort(self, error: HeadraceError) -> None:
        """Refuse new requests and fail those that wait: no instance will run them."""
        self._closed = error
        for entry in list(self._line):
            self._line.leave(entry.pending, entry.level)
            entry.pending.fail(error)
        for part in list(self._waiting):
            self._drop(part)
            _pending(part).fail(error)

    def schedule(self) -> None:
        """Form batches once the loop has nothing else to do, so that parts join; of a lone caller at once."""
        if not self._requests and self._gathering.alone:
            self._form()
        elif len(self._waiting) and not self._scheduled:
            self._scheduled = True
            self._gathering.begin(time.monotonic_ns(), self._requests)
            self._loop.call_soon(self._gather)

    # Callbacks of the instances.

    def executed(self, batch: Batch, reply: Executed, block: memoryview) -> None:
        """Resolve the parts of a batch that ran."""
        self._statistics.batch_executed(
            batch.rows, batch.tokens, batch.reason, reply.input_ns, reply.infer_ns, reply.output_ns
        )
        row_ns = (reply.input_ns + reply.infer_ns + reply.output_ns) / batch.rows
        self._row_ns += _SMOOTHING * (row_ns - self._row_ns)
        try:
            results = split(batch, reply.outputs, block)
        except ExecutionFailedError as error:
            self.failed(batch, error)
            return
        for part, result in zip(batch.parts, results, strict=True):
            pending = _pending(part)
            queue_ns = batch.sent_ns - part.enqueued_ns
            pending.ran(queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns)
            part.batch = None
            pending.complete(part.index, result)
        if len(self._waiting) * self._row_ns > AT_ONCE_NS:
            # before the answers are written, which takes longer than the instance should wait
            self._form()
        self.schedule()

    def failed(self, batch: Batch, error: HeadraceError) -> None:
        """Fail every request that has a part in the batch, or find out which ones have invalid values."""
        if isinstance(error, TensorRefusedError) and batch.shared:
            self._separate(batch)
            return
        for part in batch.parts:
            part.batch = None
            _pending(part).fail(error)
        self.schedule()

    def returned(self, batch: Batch) -> None:
        """Put back a batch that no worker began, in front of what waits."""
        kept = [part for part in batch.parts if not part.abandoned]
        for part in kept:
            part.batch = None
            if part.expires:
                part.timer = self._loop.call_at(part.expires, self._expire, part)
        self._waiting.put_back(kept)
        self.schedule()

    def _separate(self, batch: Batch) -> None:
        """Run a batch again, each request by itself: one with invalid values must not fail the others."""
        ran = (time.monotonic_ns() - batch.sent_ns) * 1e-9
        for part in batch.parts:
            part.key = Alone(part.key, part.pending)
            if part.expires:
                part.expires += ran  # which it did not wait
        self.returned(batch)

    # The queue.

    def _admit(
        self, pending: Pending, parts: Sequence[Part], level: int, timeout_us: int, now: int, *, wait: bool
    ) -> None:
        if self._closed is not None:
            raise self._closed
        for index, part in enumerate(parts):
            part.index = index
            part.pending = pending
            part.enqueued_ns = now
        if self._waiting.fits(len(parts), level) and not (self._line and self._line.precedes(level)):
            self._enter(parts, level, timeout_us)
        elif wait and len(parts) <= self.policy.capacity(level):
            self._line.join(Entry(pending, parts, level, timeout_us))
        else:
            self._statistics.failed(0, "REJECTED")
            raise self._waiting.full(len(parts), level)

    def _enter(self, parts: Sequence[Part], level: int, timeout_us: int) -> None:
        """Have parts wait in the queue, which has room for them."""
        self._waiting.add(parts, level)
        limit = self.policy.timeout_us(level, timeout_us)
        if limit:
            expires = self._loop.time() + limit * 1e-6
            for part in parts:
                part.expires = expires
                part.timer = self._loop.call_at(expires, self._expire, part)
        self.schedule()

    def _let_in(self) -> None:
        """Let in who waits for room, now that there may be some."""
        if self._line:
            for entry in self._line.let_in():
                for part in entry.parts:
                    part.enqueued_ns = time.monotonic_ns()
                self._enter(entry.parts, entry.level, entry.timeout_us)

    def _drop(self, part: Part) -> bool:
        if part.timer is not None:
            part.timer.cancel()
            part.timer = None
        return self._waiting.remove(part)

    def _withdraw(self, parts: Sequence[Part]) -> None:
        """Forget what still waits of a request that was given up, and stop batches that nobody waits for."""
        for part in parts:
            if not self._drop(part) and part.batch is not None and part.batch.abandoned:
                batch = part.batch
                for executor in self._executors:
                    executor.cancel(batch)
        self._let_in()

    def _expire(self, part: Part) -> None:
        part.timer = None
        if part not in self._waiting:
            return
        if self.policy.queue_of(part.level).delay:
            self._waiting.postpone(part)
        else:
            self._drop(part)
            _pending(part).fail(QueueTimeoutError("Request timeout expired"))
        self._let_in()

    # Forming batches.

    def _gather(self) -> None:
        """Let the loop take in what has already arrived before a batch is formed.

        Under load this is what makes small requests share batches without any fixed delay.
        """
        waiting = len(self._waiting)
        if (
            0 < waiting < self.policy.max_rows
            and self._idle_executors()
            and self._gathering.more(time.monotonic_ns(), waiting, self._requests)
        ):
            self._loop.call_soon(self._gather)
        else:
            self._scheduled = False
            self._form()

    def _form(self) -> None:
        """Form batches as long as something waits and an instance takes one."""
        while len(self._waiting):
            idle = self._idle_executors()
            if idle:
                divide = len(self._waiting) * self._row_ns > SPLIT_NS
                share = -(-len(self._waiting) // len(idle)) if divide else len(self._waiting)
                selection = select(self._waiting, self.policy, share)
                if selection is None:
                    break
                if not selection.complete and (wait := self._remaining_delay()) > 0:
                    self._wake_in(wait)
                    return
                reason = "delay" if self.policy.delay_us and not selection.complete else selection.reason
                lone = len(idle) == len(self._executors) and len(selection.parts) == len(self._waiting)
                lone = lone and self.policy.lone
                self._send(_best(idle, lone=lone), selection.parts, reason, lone=lone)
                continue
            # All instances run: give one its next batch ahead of time, but only a batch that cannot improve.
            busy = [executor for executor in self._executors if executor.batches < executor.slots]
            if not busy:
                break
            selection = select(self._waiting, self.policy, len(self._waiting))
            if selection is None or not selection.complete:
                break
            self._send(min(busy, key=_load), selection.parts, selection.reason, lone=False)

    def _idle_executors(self) -> list[Executor]:
        return [executor for executor in self._executors if executor.slots and not executor.batches]

    def _send(self, executor: Executor, parts: list[Part], reason: str, *, lone: bool) -> None:
        for part in parts:
            self._drop(part)
        beside = bool(self._waiting) or any(one.batches for one in self._executors if one is not executor)
        batch = Batch(parts, reason, lone=lone and executor.lone_capable, beside=beside)
        for part in parts:
            part.batch = batch
        batch.sent_ns = time.monotonic_ns()
        executor.send(batch)
        self._let_in()

    def _remaining_delay(self) -> float:
        """Seconds that the oldest part may still wait for a better batch."""
        if not self.policy.delay_us:
            return 0.0
        oldest = min(part.enqueued_ns for part in self._waiting)
        return (oldest + self.policy.delay_us * 1000 - time.monotonic_ns()) * 1e-9

    def _wake_in(self, seconds: float) -> None:
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        self._delay_timer = self._loop.call_later(seconds, self.schedule)

    def _count(self, pending: Pending, total_ns: int) -> None:
        statistics = self._statistics
        statistics.success.add(total_ns)
        statistics.queue.add(pending.queue_ns)
        statistics.compute_input.add(pending.input_ns)
        statistics.compute_infer.add(pending.infer_ns)
        statistics.compute_output.add(pending.output_ns)
        statistics.queue_seconds.observe(pending.queue_ns * 1e-9)


def _pending(part: Part) -> Pending:
    if part.pending is None:
        msg = "a part without a request reached the scheduler"
        raise RuntimeError(msg)
    return part.pending


def _load(executor: Executor) -> int:
    return executor.batches


def _best(idle: Sequence[Executor], *, lone: bool) -> Executor:
    """Prefer the instance with the all-threads form for a lone batch."""
    if lone:
        for executor in idle:
            if executor.lone_capable:
                return executor
    return idle[0]


def _failure_reason(error: BaseException) -> str:
    if isinstance(error, (QueueFullError, QueueTimeoutError, ModelNotReadyError)):
        return "REJECTED"
    if isinstance(error, (asyncio.CancelledError, DeadlineExceededError)):
        return "CANCELED"
    if isinstance(error, (ExecutionFailedError, WorkerCrashedError)):
        return "BACKEND"
    return "OTHER"
