"""The core's side of one front's requests: each runs as a task until it is answered or cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import numpy as np

from headrace.runtimes.generation.messages import Tokens
from headrace.server.errors import ModelNotReadyError
from headrace.server.fronts.errors import pack_error
from headrace.server.fronts.messages import (
    Admitted,
    Cancel,
    EndSample,
    News,
    Output,
    PartMessage,
    Ran,
    Refused,
    Request,
    Run,
    Submit,
)
from headrace.server.scheduling.work import Part, PartInput, PartResult

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.generator import Ticket

AskedT = TypeVar("AskedT", Run, Submit)

_GONE: Final = "Request for unknown model: it is being unloaded"


class _Text:
    """A request for text: its ticket, and the samples of which news are still to come."""

    __slots__ = ("ticket", "unfinished")

    def __init__(self, ticket: Ticket, sampling: Sampling) -> None:
        self.ticket = ticket
        self.unfinished = set(range(max(1, sampling.n)))


class Session:
    """Runs what a front asks for.

    Args:
        send: writes a message to the front.

    Attributes:
        models: by number, what the front may use; they are held as long as it may.
    """

    def __init__(self, send: Callable[[msgspec.Struct], None]) -> None:
        self.models: dict[int, Model] = {}
        self._send = send
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._texts: dict[int, _Text] = {}

    @property
    def active(self) -> int:
        """Requests that have not been answered."""
        return len(self._tasks)

    def take(self, message: Request) -> None:
        """Begin, change or end a request."""
        if isinstance(message, Run):
            self._begin(message, self._run)
        elif isinstance(message, Submit):
            self._begin(message, self._generate)
        elif isinstance(message, EndSample):
            self._end_sample(message)
        elif isinstance(message, Cancel):
            self._cancel(message.request)

    def end(self) -> None:
        """Cancel everything: the front has gone."""
        for request in list(self._tasks):
            self._cancel(request)
        self.models.clear()

    def _begin(self, message: AskedT, work: Callable[[AskedT], Awaitable[None]]) -> None:
        answer = self._answer(message, work)
        self._tasks[message.request] = asyncio.get_running_loop().create_task(answer)

    async def _answer(self, message: AskedT, work: Callable[[AskedT], Awaitable[None]]) -> None:
        try:
            await work(message)
        except Exception as error:  # noqa: BLE001 - whatever it is, the front's caller is told
            self._send(Refused(message.request, pack_error(error)))
        finally:
            self._tasks.pop(message.request, None)

    async def _run(self, message: Run) -> None:
        batcher = self._model(message.model).batcher
        if batcher is None:
            raise ModelNotReadyError(_GONE)
        parts = [_part(part) for part in message.parts]
        results = await batcher.run(
            parts, priority=message.priority, timeout_us=message.timeout_us, wait=message.wait
        )
        pending = parts[0].pending if parts else None
        times = (0,) * 6
        if pending is not None:
            times = (
                pending.queue_ns, pending.input_ns, pending.infer_ns, pending.output_ns,
                pending.all_queue_ns, pending.all_infer_ns,
            )  # fmt: skip
        self._send(Ran(message.request, tuple([_outputs(result) for result in results]), *times))

    async def _generate(self, message: Submit) -> None:
        generator = self._model(message.model).generator
        if generator is None:
            raise ModelNotReadyError(_GONE)
        request = message.request
        ticket = generator.submit(np.frombuffer(message.prompt, "<i4").astype(np.int32), message.sampling)
        text = self._texts[request] = _Text(ticket, message.sampling)
        try:
            self._send(Admitted(request))
            while text.unfinished:
                events = await ticket.events()
                for event in events:
                    if isinstance(event, Tokens) and event.finish is not None:
                        text.unfinished.discard(event.sample)
                self._send(News(request, tuple(events), last=not text.unfinished))
        finally:
            del self._texts[request]
            ticket.close()

    def _end_sample(self, message: EndSample) -> None:
        text = self._texts.get(message.request)
        if text is None:
            return
        text.unfinished.discard(message.sample)
        if text.unfinished:
            text.ticket.end(message.sample)
        else:
            self._cancel(message.request)

    def _cancel(self, request: int) -> None:
        task = self._tasks.pop(request, None)
        if task is not None:
            task.cancel()

    def _model(self, number: int) -> Model:
        model = self.models.get(number)
        if model is None:
            raise ModelNotReadyError(_GONE)
        return model


def _part(message: PartMessage) -> Part:
    return Part(
        [PartInput(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in message.inputs],
        outputs=message.outputs,
        rows=message.rows,
        tokens=message.tokens,
        key=message.key,
    )


def _outputs(result: PartResult) -> tuple[Output, ...]:
    return tuple([Output(name, *output) for name, output in result.items()])
