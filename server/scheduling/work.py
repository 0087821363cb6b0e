"""What the scheduler moves: parts of requests, and the pending answers they belong to.

A request is one or more parts (a client batch of 32 texts is 32 parts; a tensor request is one). Parts
wait, are put into batches with parts of other requests, and come back one by one; :class:`Pending` joins
them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.server.scheduling.batch import Batch


class PartInput(NamedTuple):
    """One tensor of a part; ``shape`` has the batch dimension first when the model batches."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class PartOutput(NamedTuple):
    """One tensor of a part's result; ``data`` is the raw content and belongs to the receiver."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


PartResult = dict[str, PartOutput]


class Pending:
    """One request's answer: ``future`` resolves to the parts' results in order, or to the first error.

    The durations are in nanoseconds: the longest of its parts', and ``all_queue_ns`` and ``all_infer_ns`` are
    sums over them.
    """

    __slots__ = (
        "all_infer_ns", "all_queue_ns", "future", "infer_ns", "input_ns", "missing", "output_ns", "queue_ns",
        "results",
    )  # fmt: skip

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for ``count`` parts."""
        self.future: asyncio.Future[list[PartResult]] = loop.create_future()
        self.results: list[PartResult] = [{}] * count
        self.missing = count
        self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0
        self.all_queue_ns = self.all_infer_ns = 0

    def ran(self, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a part that waited ``queue_ns`` for a batch with these durations."""
        self.all_queue_ns += queue_ns
        self.all_infer_ns += infer_ns
        self.queue_ns = max(self.queue_ns, queue_ns)
        self.input_ns = max(self.input_ns, input_ns)
        self.infer_ns = max(self.infer_ns, infer_ns)
        self.output_ns = max(self.output_ns, output_ns)

    def complete(self, index: int, result: PartResult) -> None:
        """Take one part's result; the last one resolves the future."""
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0 and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: Exception) -> None:
        """Fail the whole request; its other parts are of no use any more."""
        if not self.future.done():
            self.future.set_exception(error)


class Alone(NamedTuple):
    """Key of parts that are run again by themselves: only those of the same request may share a batch."""

    key: Hashable
    pending: Pending | None


class Part:
    """One schedulable unit.

    Attributes:
        inputs: the tensors; all parts of a batch have the same names and datatypes in the same order.
        outputs: names of the outputs wanted; empty for all.
        rows: batch rows this part takes, at least 1.
        tokens: length of a text in tokens; 0 for tensors. Batches of texts are formed by this.
        key: only parts with equal keys share a batch (input shapes without the batch dimension, outputs).
    """

    __slots__ = (
        "batch", "enqueued_ns", "expires", "index", "inputs", "key", "level", "outputs", "pending", "rows",
        "timer", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Sequence[PartInput],
        *,
        outputs: tuple[str, ...] = (),
        rows: int = 1,
        tokens: int = 0,
        key: Hashable = None,
    ) -> None:
        """Describe the unit; the scheduler fills in the rest when it is submitted."""
        self.inputs = inputs
        self.outputs = outputs
        self.rows = rows
        self.tokens = tokens
        self.key = key
        # Written by the batcher:
        self.level: int = 1  # priority level, 1 is the most urgent
        self.index = 0  # position among the request's parts
        self.enqueued_ns = 0  # monotonic
        self.expires = 0.0  # when the queue timeout passes, time of the loop; 0 for never
        self.timer: asyncio.TimerHandle | None = None  # fires then, while the part waits
        self.pending: Pending | None = None
        self.batch: Batch | None = None  # set while a worker has it

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for this part any more."""
        return self.pending is None or self.pending.future.done()
