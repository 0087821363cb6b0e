"""One beam search in the engine: moves the KV of the beams as the bookkeeping of ``beams`` decides."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation.base import Decoder
from headrace.runtimes.generation.beams import Beams
from headrace.runtimes.generation.messages import Logprob
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.generation.scheduler import Scheduler
from headrace.runtimes.generation.sequence import Request, Sequence

Hypothesis = tuple[tuple[int, ...], tuple[Logprob, ...]]
"""Tokens, and their logprobs where they are wanted."""


class BeamSearch:
    """Beams of one request; each is a sequence with a slot of its own.

    Beams decode in the same steps: a decode is never put off, and when one is preempted all are, and the
    search starts again from the prompt. Nothing was told to anyone by then, and it finds the same again.
    """

    def __init__(
        self, request: Request, decoder: Decoder, sampler: Sampler, scheduler: Scheduler, ends: Rows[int]
    ) -> None:
        """Start from the request's first sequence, whose prompt is computed; ``ends`` finish a hypothesis."""
        sampling = request.sampling
        self._request = request
        self._decoder = decoder
        self._sampler = sampler
        self._scheduler = scheduler
        self._ends = tuple(ends)
        self._beams = Beams(
            sampling.best_of,
            sampling.n,
            sampling.length_penalty,
            request.last - len(request.prompt),
            self._ends,
        )
        self.sequences = [request.sequences[0]]
        """The beams, in the order in which their logits are wanted."""
        self._described: list[dict[tuple[int, int], Logprob]] = []

    @property
    def finished(self) -> bool:
        """Whether the search is over."""
        return self._beams.finished

    def step(self, logits: NDArray[np.float32]) -> None:
        """Take a step from ``logits``, ``[beams, V]``."""
        states = [sequence.state for sequence in self.sequences if sequence.state is not None]
        moves = self._beams.advance(self._sampler.log_probabilities(logits, states))
        if self._request.sampling.logprobs is not None:
            wanted = {*moves, *((row, end) for row in range(len(logits)) for end in self._ends)}
            self._described.append({})
            if self.finished:
                length = len(self._described)
                for (tokens, _), rows in zip(self._beams.best(), self._beams.rows(), strict=True):
                    if len(tokens) == length:
                        wanted.add((rows[-1], tokens[-1]))
            self._describe(logits, sorted(wanted))
        if not self.finished:
            self._move(moves)

    def best(self) -> list[Hypothesis]:
        """Return the best hypotheses, best first."""
        found = []
        for (tokens, _), rows in zip(self._beams.best(), self._beams.rows(), strict=True):
            steps = zip(self._described, rows, tokens, strict=False)
            found.append((tokens, tuple(step[row, token] for step, row, token in steps)))
        return found

    def _describe(self, logits: NDArray[np.float32], wanted: Rows[tuple[int, int]]) -> None:
        top = self._request.sampling.logprobs or 0
        rows = logits[[row for row, _ in wanted]]
        described = self._sampler.prompt_logprobs(rows, [token for _, token in wanted], top)
        self._described[-1].update(zip(wanted, described, strict=True))

    def _move(self, moves: Rows[tuple[int, int]]) -> None:
        """Go on with ``(parent, token)`` of each beam: one child takes its parent's place, others a copy."""
        parents = {row for row, _ in moves}
        for row, sequence in enumerate(self.sequences):
            if row not in parents:
                self._scheduler.park(sequence)
                self._request.sequences.remove(sequence)
        beams = []
        placed = set()
        for row, _ in moves:
            parent = self.sequences[row]
            if row not in placed:
                placed.add(row)
                beams.append(parent)
            elif (child := self._copy(parent)) is not None:
                beams.append(child)
            else:
                self._scheduler.preempt(parent)
                return
        for beam, (_, token) in zip(beams, moves, strict=True):
            beam.tokens.append(token)
            if beam.state is not None:
                self._sampler.append(beam.state, token)
        self.sequences = beams

    def _copy(self, parent: Sequence) -> Sequence | None:
        """Return a copy of ``parent`` in a slot of its own; None where blocks are short."""
        request = self._request
        # the block that is not full yet is the only one of its own
        if parent.state is None or not self._scheduler.make_room(parent, 1):
            return None
        taken = {sequence.sample for sequence in request.sequences}
        sample = min(set(range(request.slots)) - taken)
        child = Sequence(request, sample, parent.tokens)
        child.state = self._sampler.fork(parent.state, sample)
        if not self._scheduler.fork(parent, child):
            return None
        request.sequences.append(child)
        self._decoder.copy(parent.slot, child.slot, parent.blocks, child.blocks, parent.computed)
        return child
