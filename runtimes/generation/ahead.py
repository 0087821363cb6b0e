"""Steps of a decoder that chooses tokens itself: which it may choose, and which steps are begun ahead.

While a step runs, the one behind it is begun as if every sequence went on by one token, whose id never leaves
the device. That is done when all that runs is decoding and drawn by the decoder, and nobody who waits could
join; every other step is begun when the one before it has been read. A sequence that turns out to have ended
has its row of the step ahead dropped: that row wrote behind the sequence's last token, into a block that
nobody can find, and whoever gets the block writes later (see ``SamplingDecoder``).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation import seeds
from headrace.runtimes.generation.base import (
    Begun,
    Chunk,
    Decoder,
    Draw,
    GenerationSpec,
    Outcome,
    SamplingDecoder,
)
from headrace.runtimes.generation.sampling import SamplerState
from headrace.runtimes.generation.scheduler import DRAFTING_SEQUENCES, Plan, Scheduler
from headrace.runtimes.generation.sequence import Sequence

_GREEDY: Final = Draw(0.0, 0, 1.0, 0.0, 0.0)

_UNKNOWN: Final = (0,)
"""The token of a chunk that is drawn in the step before it."""


class Drawn(NamedTuple):
    """The next token of a sequence; ``sound`` says whether its logits were finite."""

    sequence: Sequence
    token: int
    sound: bool


class Results(NamedTuple):
    """What came out of a step: tokens that the decoder drew, and ``logits`` of the chunks in ``rest``."""

    drawn: Rows[Drawn]
    rest: Plan
    logits: NDArray[np.float32]


@dataclass(slots=True)
class _Flight:
    """A step that was begun; ``draws[i]`` is of ``plan.chunks[i]``."""

    plan: Plan
    draws: list[Draw | None]
    begun: Begun

    def results(self) -> Results:
        """Wait for the step; what sequences gained that are gone by now is left out."""
        outcome = self.begun.read()
        tokens = iter(zip(outcome.tokens, outcome.sound, strict=True))
        drawn: list[Drawn] = []
        rest = Plan(prefill=self.plan.prefill)
        for sequence, chunk, draw in zip(self.plan.sequences, self.plan.chunks, self.draws, strict=True):
            if draw is None:
                rest.sequences.append(sequence)
                rest.chunks.append(chunk)
            else:
                token, sound = next(tokens)
                if sequence.slot == chunk.slot:
                    drawn.append(Drawn(sequence, token, sound))
        return Results(drawn, rest, outcome.logits)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A step that failed before it was under way: told when its turn comes, after the one before it."""

    error: Exception

    def read(self) -> Outcome:
        raise self.error


class Ahead:
    """Begins steps and reads them, one of them ahead where it can be."""

    def __init__(self, decoder: SamplingDecoder, scheduler: Scheduler, spec: GenerationSpec) -> None:
        """Compute what ``scheduler`` plans on ``decoder``."""
        self._decoder = decoder
        self._scheduler = scheduler
        self._size = spec.block_tokens
        self._drafts = spec.draft_tokens > 0
        self._flight: _Flight | None = None

    @classmethod
    def of(cls, decoder: Decoder, scheduler: Scheduler, spec: GenerationSpec) -> Ahead | None:
        """Return one for a decoder that chooses tokens itself, and None for others."""
        if not isinstance(decoder, SamplingDecoder) or decoder.sampling == "host":
            return None
        if decoder.together != "all":
            return None
        return cls(decoder, scheduler, spec)

    def take(self) -> Plan | None:
        """Return what the next :meth:`compute` is of if that was begun already: sequences that still run."""
        plan = None if self._flight is None else self._flight.plan.left()
        if plan is not None and plan.sequences:
            return plan
        self._flight = None
        return None

    def compute(self, plan: Plan) -> Results:
        """Compute ``plan``, which is what :meth:`take` returned if it did, and begin the step behind it."""
        flight = self._flight
        if flight is None:
            draws = [
                _draw(sequence, chunk) for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True)
            ]
            flight = _Flight(plan, draws, self._decoder.begin(plan.chunks, draws))
        self._flight = self._begin_behind(flight)
        return flight.results()

    def _begin_behind(self, flight: _Flight) -> _Flight | None:
        """Begin the step behind one that was begun but not read, if that can be planned now."""
        scheduler = self._scheduler
        if self._decoder.sampling != "ahead" or None in flight.draws:
            return None
        running = len(scheduler.running)
        if scheduler.admits or (self._drafts and running <= DRAFTING_SEQUENCES):
            return None
        follows: list[int] = []
        plan = Plan()
        for place, (sequence, chunk) in enumerate(
            zip(flight.plan.sequences, flight.plan.chunks, strict=True)
        ):
            if sequence.slot == chunk.slot:
                running -= 1
                # the others are known to end with the token that is being computed
                if len(sequence.tokens) + 1 < sequence.request.last:
                    follows.append(place)
                    plan.sequences.append(sequence)
        # those that the step does not have are in the middle of their prompts
        if running or not follows or not self._grow(plan.sequences):
            return None
        draws: list[Draw | None] = []
        for sequence in plan.sequences:
            draws.append(None if sequence.state is None else _parameters(sequence.state, 1))
            start = len(sequence.tokens)
            plan.chunks.append(Chunk(sequence.slot, _UNKNOWN, start, sequence.blocks, 1, fresh=False))
        try:
            begun: Begun = self._decoder.begin(plan.chunks, draws, follows)
        except Exception as error:  # noqa: BLE001 - the step before it is not to blame
            begun = _Failed(error)
        return _Flight(plan, draws, begun)

    def _grow(self, sequences: Rows[Sequence]) -> bool:
        """Have blocks for a token behind the newest; False, with nothing changed, when too few are free."""
        full = [each for each in sequences if len(each.tokens) >= len(each.blocks) * self._size]
        blocks = self._scheduler.blocks
        if len(full) > blocks.free:
            return False
        for sequence in full:
            sequence.blocks += blocks.allocate(1)
        return True


def _draw(sequence: Sequence, chunk: Chunk) -> Draw | None:
    """Return how the decoder chooses the token behind a chunk, None where only the sampler can."""
    state = sequence.state
    if state is None or chunk.logits != 1 or state.sampling.beam:
        return None
    wanted = state.sampling
    if state.matcher is not None or state.processors.active or wanted.logprobs is not None:
        return None
    return None if wanted.typical_p < 1 and wanted.temperature > 0 else _parameters(state, 0)


def _parameters(state: SamplerState, ahead: int) -> Draw:
    """Return how the token ``ahead`` of a sample's next one is drawn."""
    wanted = state.sampling
    if wanted.temperature <= 0:
        return _GREEDY
    uniform = seeds.uniform(state.seed, state.sample, state.position + ahead)
    return Draw(wanted.temperature, wanted.top_k, wanted.top_p, wanted.min_p, uniform)
