"""The generation engine: continuous batching over one decoder, a step at a time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.ahead import Ahead, Results
from headrace.runtimes.generation.base import Decoder, GenerationSpec
from headrace.runtimes.generation.blocks import BlockManager
from headrace.runtimes.generation.messages import Add, EngineStats, Event, Rejected, Started
from headrace.runtimes.generation.postprocess import Postprocessor, failure
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.generation.scheduler import Plan, Scheduler
from headrace.runtimes.generation.sequence import Request
from headrace.runtimes.generation.step_times import StepTimes

if TYPE_CHECKING:
    from headrace.runtimes.generation.structured import CompiledGrammar

Emit = Callable[[list[Event]], None]


class Engine:
    """Runs requests on a decoder. Single-threaded: every method is called between steps."""

    def __init__(self, decoder: Decoder, sampler: Sampler, spec: GenerationSpec) -> None:
        """Use ``decoder`` within the limits of ``spec``."""
        self._decoder = decoder
        self._spec = spec
        self._blocks = BlockManager(spec.kv_tokens // spec.block_tokens)
        self._scheduler = Scheduler(spec, self._blocks, self._release, decoder.together)
        self._postprocessor = Postprocessor(decoder, sampler, self._scheduler, spec.eos_ids, self._close)
        self._ahead = Ahead.of(decoder, self._scheduler, spec)
        self._requests: dict[int, Request] = {}
        self._context = min(spec.max_tokens, self._blocks.total * spec.block_tokens)
        self._arrivals = 0
        self._steps = 0
        self._prefills = StepTimes()
        self._decodes = StepTimes()
        self._prompt_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def stats(self) -> EngineStats:
        """The present state and the totals; prefix queries and hits are in tokens."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_slots=scheduler.free_slots,
            free_blocks=self._blocks.free,
            total_blocks=self._blocks.total,
            preemptions=scheduler.preemptions,
            prefix_queries=scheduler.prefixes.queried_tokens,
            prefix_hits=scheduler.prefixes.hit_tokens,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._postprocessor.generated,
            steps=self._steps,
            prefill=self._prefills.stats,
            decode=self._decodes.stats,
        )

    def refusal(self, message: Add) -> str | None:
        """Return why a request can never run, None when it can."""
        if not message.prompt or len(message.prompt) % 4:
            return "the prompt is empty" if not message.prompt else "the prompt is not a list of int32 ids"
        prompt = np.frombuffer(message.prompt, "<i4")
        sampling = message.sampling
        if (text := self._bad_id(prompt)) is not None:
            return text
        if len(prompt) > self._context:
            return f"the prompt has {len(prompt)} tokens; prompt and output together may have {self._context}"
        if len(prompt) == self._context and sampling.max_tokens:
            return f"the prompt has {len(prompt)} tokens, which leaves no room for output in {self._context}"
        if sampling.beam:
            return self._search_refusal(len(prompt), sampling.max_tokens, sampling.best_of)
        return None

    def add(self, message: Add, grammar: CompiledGrammar | None = None) -> list[Event]:
        """Take a request in; ``grammar`` is what its grammar was compiled to. Returns its refusal, if any."""
        if (text := self.refusal(message)) is not None:
            return [Rejected(message.request, "invalid", text)]
        prompt: list[int] = np.frombuffer(message.prompt, "<i4").tolist()
        request = Request(
            message.request,
            prompt,
            message.sampling,
            arrival=self._arrivals,
            last=min(self._context, len(prompt) + message.sampling.max_tokens),
            caching=self._spec.prefix_cache,
            grammar=grammar,
        )
        self._arrivals += 1
        self._requests[message.request] = request
        self._scheduler.add(request.sequences[0])
        return []

    def abort(self, identifier: int) -> bool:
        """Forget a request and free what it holds; False when it is not there any more."""
        request = self._requests.get(identifier)
        if request is None:
            return False
        self._close(request)
        return True

    def end(self, identifier: int, sample: int) -> bool:
        """End one sample of a request, of which no more is told, and free what it holds.

        False when there is nothing to end: see :class:`headrace.runtimes.generation.messages.Abort`.
        """
        request = self._requests.get(identifier)
        if request is None or request.chooses or request.sampling.beam:
            return False
        sequence = next((each for each in request.sequences if each.sample == sample), None)
        # before its first token a sequence computes the prompt for its siblings too
        if sequence is None or sequence.state is None:
            return False
        if len(request.sequences) == 1:
            self._close(request)
        else:
            self._scheduler.remove(sequence)
            request.sequences.remove(sequence)
        return True

    def step(self, emit: Emit, listen: Callable[[], None] | None = None) -> None:
        """Compute one step; ``emit`` is called with what starts before it and with what comes out of it.

        ``listen`` is called whenever the decoder has done a part: requests may be added and ended then.
        """
        begin = time.perf_counter_ns()
        begun = None if self._ahead is None else self._ahead.take()
        plan = begun or self._scheduler.plan()
        if plan.started:
            self._prompt_tokens += sum(len(request.prompt) for request in plan.started)
            emit([Started(request.identifier, request.sequences[0].cached) for request in plan.started])
        self._steps += 1
        for part in plan.passes(self._decoder.together):
            events = self._run(part, begin)
            if events:
                emit(events)
            if listen is not None:
                listen()
            begin = time.perf_counter_ns()

    def prepare(self) -> bool:
        """Do a little of what later steps need, when there is none to run; False when nothing is left."""
        return self._decoder.prepare()

    def _run(self, plan: Plan, begin: int) -> list[Event]:
        """Compute a plan that was begun at ``begin`` (ns), and return what came out of it."""
        times = self._prefills if plan.prefill else self._decodes
        times.steps += 1
        planned = time.perf_counter_ns()
        try:
            results = self._compute(plan)
        except Exception as error:  # noqa: BLE001 - the requests of these chunks end, the engine does not
            times.failures += 1
            if self._decoder.together == "mixed" and len(parts := list(plan.passes("alike"))) > 1:
                # decodes are not to end with the prompt beside them
                return [event for part in parts for event in self._run(part, time.perf_counter_ns())]
            text = failure(error)
            requests = {sequence.request: None for sequence in plan.sequences}
            for request in requests:
                self._close(request)
            return [Rejected(request.identifier, "execution", text) for request in requests]
        computed = time.perf_counter_ns()
        events = self._postprocessor.take(results.drawn) if results.drawn else []
        if results.rest.sequences:
            events += self._postprocessor.process(results.rest, results.logits)
        times.add(begin, planned, computed, time.perf_counter_ns())
        return events

    def _compute(self, plan: Plan) -> Results:
        if self._ahead is None:
            results = Results((), plan, self._decoder.step(plan.chunks))
        else:
            results = self._ahead.compute(plan)
        found = results.logits.shape
        shape = (sum(chunk.logits for chunk in results.rest.chunks), self._decoder.vocabulary_size)
        if found != shape:
            raise ModelError(f"the decoder returned logits of shape {found}; expected {shape}")
        return results

    def _close(self, request: Request) -> None:
        """End a request, whatever its state."""
        request.closed = True
        for sequence in request.sequences:
            self._scheduler.remove(sequence)
        # sequences know their request: without the way back nothing is left for the garbage collector
        request.sequences = []
        request.ended = []
        request.search = None
        self._requests.pop(request.identifier, None)

    def _release(self, slot: int) -> None:
        try:
            self._decoder.release(slot)
        except Exception:  # noqa: BLE001 - the slot is overwritten by whoever gets it next
            traceback.print_exc()

    def _bad_id(self, prompt: NDArray[np.int32]) -> str | None:
        size = self._decoder.vocabulary_size
        low, high = int(prompt.min()), int(prompt.max())
        if low >= 0 and high < size:
            return None
        return f"token id {low if low < 0 else high} is out of the vocabulary: ids are 0 to {size - 1}"

    def _search_refusal(self, prompt: int, max_tokens: int, width: int) -> str | None:
        """Beams run together, so all must fit at their longest; they share the prompt's full blocks."""
        if width > self._spec.max_sequences:
            return f"{width} beams are more than the {self._spec.max_sequences} sequences that run at once"
        size = self._spec.block_tokens
        shared = prompt // size
        longest = min(self._context, prompt + max_tokens)
        if shared + width * (-(-longest // size) - shared) > self._blocks.total:
            return (
                f"{width} beams of up to {longest} tokens need more than the {self._blocks.total * size} "
                "tokens that the KV cache holds"
            )
        return None
