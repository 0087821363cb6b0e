"""A front's side of the schedulers: requests to the core, and who waits for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import msgspec

from headrace.server.fronts.errors import unpack_error
from headrace.server.fronts.messages import Answer, Cancel, Input, Output, PartMessage, Ran, Refused, Run
from headrace.server.scheduling.work import Part, PartOutput, PartResult, Pending

if TYPE_CHECKING:
    from headrace.server.scheduling.policy import BatchingPolicy


class Requests:
    """The requests that are with the core.

    Args:
        send: writes a message to the core.
    """

    def __init__(self, send: Callable[[msgspec.Struct], None]) -> None:
        self.send = send
        self._waiting: dict[int, Callable[[Answer], None]] = {}
        self._next = 0

    def begin(self, take: Callable[[Answer], None]) -> int:
        """Return the number of a new request, whose answers go to ``take``."""
        self._next += 1
        self._waiting[self._next] = take
        return self._next

    def end(self, request: int) -> None:
        """Forget a request; answers that are still on their way are passed over. Idempotent."""
        self._waiting.pop(request, None)

    def answer(self, message: Answer) -> None:
        """Give an answer to who waits for it."""
        take = self._waiting.get(message.request)
        if take is not None:
            take(message)


class RemoteBatcher:
    """The batcher of a model version, which is in the core.

    Args:
        model: number of the model.
        policy: of the batcher.
        requests: the way to the core.
    """

    def __init__(self, model: int, policy: BatchingPolicy, requests: Requests) -> None:
        self.policy = policy
        self._model = model
        self._requests = requests
        self._active = 0

    @property
    def waiting(self) -> int:
        """None: the core alone knows which parts wait."""
        return 0

    @property
    def active(self) -> int:
        """Requests of this front that have not been answered."""
        return self._active

    async def run(
        self, parts: Sequence[Part], *, priority: int = 0, timeout_us: int = 0, wait: bool = False
    ) -> list[PartResult]:
        """Execute the parts of one request: see :meth:`headrace.server.scheduling.batcher.Batcher.run`."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Ran] = loop.create_future()

        def take(message: Answer) -> None:
            if answered.done():
                return
            if isinstance(message, Ran):
                answered.set_result(message)
            elif isinstance(message, Refused):
                answered.set_exception(unpack_error(message.error))

        request = self._requests.begin(take)
        self._active += 1
        try:
            messages = tuple([_message(part) for part in parts])
            self._requests.send(Run(request, self._model, messages, priority, timeout_us, wait))
            ran = await answered
        except asyncio.CancelledError:
            self._requests.send(Cancel(request))
            raise
        finally:
            self._active -= 1
            self._requests.end(request)
        pending = Pending(0, loop)
        pending.queue_ns, pending.input_ns = ran.queue_ns, ran.input_ns
        pending.infer_ns, pending.output_ns = ran.infer_ns, ran.output_ns
        pending.all_queue_ns, pending.all_infer_ns = ran.all_queue_ns, ran.all_infer_ns
        for part in parts:
            part.pending = pending
        return [_result(outputs) for outputs in ran.results]


def _message(part: Part) -> PartMessage:
    inputs = tuple(
        [Input(tensor.name, tensor.datatype, tensor.shape, memoryview(tensor.data)) for tensor in part.inputs]
    )
    return PartMessage(inputs, part.outputs, part.rows, part.tokens, _key(part.key))


def _key(key: Hashable) -> bytes:
    """Write a key, which is made of tuples, texts and numbers, so that equal ones have equal bytes."""
    return msgspec.msgpack.encode(key)


def _result(outputs: Sequence[Output]) -> PartResult:
    return {output.name: PartOutput(output.datatype, output.shape, output.data) for output in outputs}
