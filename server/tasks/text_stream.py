"""A running generation request as its caller sees it: deltas, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from headrace.runtimes.generation.messages import PromptLogprobs, Started, Tokens
from headrace.server.errors import CancelledError, DeadlineExceededError, RequestRefusedError
from headrace.server.tasks.generation import Generation, Sample

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import Event
    from headrace.runtimes.generation.parameters import Sampling
    from headrace.server.scheduling.generator import Ticket
    from headrace.server.tasks.generation import Delta, Timeline, TokenDetail
    from headrace.server.tasks.running import RunningRequests
    from headrace.server.tasks.samples import SampleText
    from headrace.server.tasks.vocabulary import Vocabulary
    from headrace.server.telemetry.generation import FinishedReason, GenerationStatistics


class TextStream:
    """An async iterator of :class:`Delta`, samples interleaved; ``async with`` frees the slot at its end.

    Iterating raises what ``Ticket.events`` raises, and DeadlineExceededError.

    Args:
        ticket: the request in the engine.
        sampling: as it was sent there.
        request_id: by which it can be aborted; "" for none.
        prompt_ids: the prompt's tokens.
        samples: one for each sample.
        vocabulary: of the model.
        running: where the request is known while it runs.
        statistics: where its end is counted.
        timeline: when things happened.

    Attributes:
        seed: what the random numbers come from; None when there are none.
        prompt_details: the prompt's tokens described, with logprobs, once the first delta is there; empty
            unless ``prompt_logprobs`` were asked for.
        generated_tokens: tokens of all samples so far.
        cached_tokens: tokens of the prompt that the prefix cache had; known with the first delta.
    """

    def __init__(
        self,
        ticket: Ticket,
        sampling: Sampling,
        request_id: str,
        prompt_ids: tuple[int, ...],
        samples: Sequence[SampleText],
        vocabulary: Vocabulary,
        running: RunningRequests,
        statistics: GenerationStatistics,
        timeline: Timeline,
    ) -> None:
        self.seed = sampling.seed if sampling.temperature > 0 else None
        self.request_id = request_id
        self.prompt_ids = prompt_ids
        self.prompt_details: tuple[TokenDetail, ...] = ()
        self.cached_tokens = 0
        self.timeline = timeline
        self._ticket = ticket
        self._samples = samples
        self._vocabulary = vocabulary
        self._running = running
        self._statistics = statistics
        self._pending: deque[Delta] = deque()
        self._unfinished = len(samples)
        self.generated_tokens = 0
        self._outcome: FinishedReason = "abort"
        self._aborted = False
        self._expired = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        running.add(request_id, self)

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self._samples)

    def limit(self, deadline: float) -> None:
        """End with DeadlineExceededError at ``deadline``, on the running loop's clock."""
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            await self._receive()
        return self._pending.popleft()

    async def accepted(self) -> None:
        """Wait for the engine's first word, so that a refusal is raised here."""
        while not (self._pending or self._closed) and not await self._receive():
            pass

    def abort(self) -> None:
        """End the request: the samples that still run end with what they have and finish ``abort``."""
        if not self._closed:
            self._aborted = True
            self._ticket.close()

    def close(self) -> None:
        """Free the slot; idempotent. Deltas that came before can still be read."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._running.remove(self.request_id, self)
        self._ticket.close()
        self.timeline.finished = time.perf_counter_ns()
        self._statistics.observe_finished(
            self._outcome,
            self.timeline,
            prompt_tokens=len(self.prompt_ids),
            generated_tokens=self.generated_tokens,
        )

    async def aclose(self) -> None:
        """Free the slot and forget what was not read."""
        self.close()
        self._pending.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _receive(self) -> bool:
        """Wait for news and take it in; whether there was any."""
        try:
            events = await self._events()
            for event in events:
                self._take(event)
        except asyncio.CancelledError:
            self.close()
            raise
        except BaseException as error:
            self._outcome = "error"
            self._statistics.rejected += isinstance(error, RequestRefusedError)
            self.close()
            raise
        if self._aborted:
            self._pending += [sample.cut("abort") for sample in self._samples if not sample.finished]
            self._unfinished = 0
        if self._unfinished == 0:
            self.close()
        return bool(events)

    async def _events(self) -> Sequence[Event]:
        """Wait for the engine; nothing when the request is aborted meanwhile."""
        if not self._interrupted():
            try:
                return await self._ticket.events()
            except CancelledError:  # of the ticket; that of this coroutine is asyncio's
                if not self._interrupted():
                    raise
        if self._expired:
            raise DeadlineExceededError("the deadline passed while text was generated")
        return ()

    def _interrupted(self) -> bool:
        return self._aborted or self._expired

    def _take(self, event: Event) -> None:
        timeline = self.timeline
        if isinstance(event, Tokens):
            sample = self._samples[event.sample]
            if sample.finished:  # its stop text was found while the engine went on
                return
            delta = sample.take(event)
            self._pending.append(delta)
            self.generated_tokens += len(delta.token_ids)
            if not timeline.first_token and delta.token_ids:
                timeline.first_token = time.perf_counter_ns()
            if delta.finish is not None:
                self._unfinished -= 1
                if event.finish is None and self._unfinished:
                    self._ticket.end(delta.sample)  # with the last one the request ends
                if delta.sample == 0:
                    self._outcome = delta.finish
        elif isinstance(event, Started):
            self.cached_tokens = event.cached_tokens
            timeline.started = time.perf_counter_ns()
        elif isinstance(event, PromptLogprobs):
            detail = self._vocabulary.detail
            pairs = zip(self.prompt_ids, event.logprobs, strict=True)
            self.prompt_details = tuple([detail(token, logprob) for token, logprob in pairs])

    def _expire(self) -> None:
        self._expired = True
        self._ticket.close()


async def complete(stream: TextStream) -> Generation:
    """Collect a whole stream; it is closed however this ends.

    Raises:
        HeadraceError: what the stream raises.
    """
    texts: list[list[str]] = [[] for _ in range(stream.samples)]
    samples = [Sample() for _ in texts]
    async with stream:
        async for delta in stream:
            sample = samples[delta.sample]
            texts[delta.sample].append(delta.text)
            sample.token_ids += delta.token_ids
            sample.details += delta.details
            sample.texts += delta.texts
            if delta.finish is not None:
                sample.finish, sample.stop, sample.eos = delta.finish, delta.stop, delta.eos
    for sample, parts in zip(samples, texts, strict=True):
        sample.text = "".join(parts)
    return Generation(
        samples, stream.prompt_ids, stream.prompt_details, stream.cached_tokens, stream.timeline
    )
