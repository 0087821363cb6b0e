"""From a step's logits to tokens and events: sampling, forks, beams, and the end of samples and requests."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Final, ParamSpec

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.ahead import Drawn
from headrace.runtimes.generation.base import Chunk, Decoder
from headrace.runtimes.generation.choice import Pick, choose
from headrace.runtimes.generation.endings import (
    best_samples,
    ending,
    grammar_failure,
    sampler_parameters,
    search_ending,
    search_ends,
    told,
)
from headrace.runtimes.generation.messages import Event, PromptLogprobs, Rejected
from headrace.runtimes.generation.sampling import Sampler, SamplerState, TokenSample
from headrace.runtimes.generation.scheduler import Plan, Scheduler
from headrace.runtimes.generation.search import BeamSearch
from headrace.runtimes.generation.sequence import NO_SLOT, Ending, Request, Sequence

P = ParamSpec("P")
Logits = NDArray[np.float32]

NOT_FINITE: Final = "the model computed logits that are not finite (NaN or infinity) for this request"


class _Work:
    """What is to be done with the logits of one step."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.best = logits.argmax(axis=1)
        self.picks: list[Pick] = []
        self.searched: dict[Request, dict[Sequence, int]] = {}


class Postprocessor:
    """Carries the results of a step into sequences, scheduler and events."""

    def __init__(
        self,
        decoder: Decoder,
        sampler: Sampler,
        scheduler: Scheduler,
        eos_ids: Rows[int],
        close: Callable[[Request], None],
    ) -> None:
        """``close`` ends a request: frees what its samples hold and forgets it."""
        self.generated = 0
        self._decoder = decoder
        self._sampler = sampler
        self._scheduler = scheduler
        self._eos_ids = frozenset(eos_ids)
        self._close = close
        self._events: list[Event] = []

    def process(self, plan: Plan, logits: Logits) -> list[Event]:
        """Return what a step brought; ``logits`` are the decoder's, of all chunks of the plan."""
        self._events = []
        work = _Work(logits)
        # NaN and infinity come before all others; -inf alone is a token that cannot be
        finite = np.isfinite(logits[np.arange(len(logits)), work.best]).tolist()
        sound = all(finite)
        picks = work.picks
        row = 0
        for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True):
            first, row = row, row + chunk.logits
            request = sequence.request
            if not sound and not all(finite[first:row]):
                if not request.closed:
                    self.reject(request, NOT_FINITE)
            elif (
                (state := sequence.state) is None
                or chunk.logits != 1
                or request.closed
                or request.search is not None
            ):
                self._guarded(request, self._advance, sequence, chunk, work, first)
            else:
                # what nearly all sequences of nearly all steps are: one more token
                self._scheduler.advance(sequence, len(sequence.tokens))
                picks.append(Pick(sequence, state, first))
        self.generated += choose(picks, logits, work.best, self._sampler, self._eos_ids, self._fail)
        for pick in picks:
            if pick.sequence.slot == NO_SLOT and pick.ending is None:
                self._guarded(pick.sequence.request, self._fork, pick.sequence)
        for pick in picks:
            if not pick.sequence.request.closed:
                self._tell(pick)
        # last: a beam may push out others, whose tokens are safe by now
        for request, rows in work.searched.items():
            self._guarded(request, self._search, request, rows, logits)
        return self._events

    def take(self, drawn: Rows[Drawn]) -> list[Event]:
        """Return what the tokens brought that the decoder drew itself."""
        self._events = []
        for sequence, _, sound in drawn:
            request = sequence.request
            if not sound and not request.closed:
                self.reject(request, NOT_FINITE)
        for sequence, token, _ in drawn:
            state = sequence.state
            if state is None or sequence.request.closed:
                continue
            self._scheduler.advance(sequence, len(sequence.tokens))
            self._sampler.append(state, token)
            sequence.tokens.append(token)
            self.generated += 1
            pick = Pick(sequence, state, 0)
            pick.chosen.append(TokenSample(token, None))
            pick.ending = ending(sequence, self._eos_ids)
            self._tell(pick)
        return self._events

    def _advance(self, sequence: Sequence, chunk: Chunk, work: _Work, first: int) -> None:
        """Note what was computed of a sequence and what its logits, from row ``first``, are for."""
        request = sequence.request
        end = chunk.start + len(chunk.tokens) - len(sequence.draft)
        self._scheduler.advance(sequence, end)
        row = first + chunk.logits - 1 - len(sequence.draft)
        if request.unscored:
            self._score(request, end, work.logits[first : row + 1])
        if end < len(sequence.tokens):
            return
        if request.scored is not None:
            self._events.append(PromptLogprobs(request.identifier, tuple(request.scored)))
            request.scored = None
        if request.last == len(request.prompt):
            self._end_empty(request)
        elif request.sampling.beam:
            work.searched.setdefault(request, {})[sequence] = row
        elif sequence.state is not None:
            work.picks.append(Pick(sequence, sequence.state, row))
        else:
            self._begin(sequence, row, work)

    def reject(self, request: Request, message: str) -> None:
        """End a request that failed; others go on."""
        self._close(request)
        self._events.append(Rejected(request.identifier, "execution", message))

    def _fail(self, request: Request, error: Exception) -> None:
        if not request.closed:
            self.reject(request, failure(error))

    def _guarded(self, request: Request, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do what may fail for one request alone; nothing when the request is over."""
        if request.closed:
            return
        try:
            work(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            self._fail(request, error)

    def _score(self, request: Request, end: int, logits: Logits) -> None:
        """Take the logprobs of prompt tokens; a row tells of the token behind it."""
        scored = request.scored
        if scored is None or request.sampling.prompt_logprobs is None:
            return
        targets = request.prompt[len(scored) : end + 1]
        scored += self._sampler.prompt_logprobs(
            logits[: len(targets)], targets, request.sampling.prompt_logprobs
        )

    def _end_empty(self, request: Request) -> None:
        """End a request that wants nothing but its prompt."""
        for sample in range(request.sampling.n):
            self._events.append(told(request, sample, (), (), Ending("length")))
        self._close(request)

    def _begin(self, sequence: Sequence, row: int, work: _Work) -> None:
        """Have a sequence whose prompt is computed sample its first token, and its siblings theirs."""
        request = sequence.request
        state = sequence.state = self._state(request)
        siblings = [
            Sequence(request, sample, request.prompt) for sample in range(1, request.sampling.best_of)
        ]
        for sibling in siblings:
            sibling.state = self._sampler.fork(state, sibling.sample)
        request.sequences += siblings
        work.picks.append(Pick(sequence, state, row))
        work.picks += [Pick(sibling, sibling.state, row) for sibling in siblings if sibling.state is not None]

    def _state(self, request: Request) -> SamplerState:
        matcher = None if request.grammar is None else request.grammar.matcher()
        return self._sampler.begin(sampler_parameters(request), request.prompt, 0, matcher)

    def _fork(self, sequence: Sequence) -> None:
        """Have a sibling go on from the KV of the first sample, or else wait for its turn."""
        parent = sequence.request.sequences[0]
        if self._scheduler.outranked(sequence) or not self._scheduler.fork(parent, sequence):
            self._scheduler.add(sequence)
            return
        self._decoder.copy(parent.slot, sequence.slot, parent.blocks, sequence.blocks, parent.computed)

    def _tell(self, pick: Pick) -> None:
        """Tell of a sample's new tokens, and end it where they do."""
        sequence, chosen = pick.sequence, pick.chosen
        request = sequence.request
        if pick.ending is not None and (text := grammar_failure(sequence)) is not None:
            self.reject(request, text)
            return
        if sequence.draft:
            right = len(chosen) - 1
            if sequence.lookup is not None:
                sequence.lookup.learn(len(sequence.draft), right)
            sequence.draft = []
            self._scheduler.advance(sequence, sequence.computed + right)
        logprobs = [sample.logprob for sample in chosen if sample.logprob is not None]
        if request.chooses:
            sequence.logprobs += logprobs
        else:
            tokens = [sample.token for sample in chosen]
            self._events.append(told(request, sequence.sample, tokens, logprobs, pick.ending))
        if pick.ending is None:
            return
        self._scheduler.remove(sequence)
        request.sequences.remove(sequence)
        if request.chooses:
            request.ended.append((sequence, pick.ending))
        if not request.sequences:
            if request.chooses:
                self._events += best_samples(request)
            self._close(request)

    def _search(self, request: Request, rows: dict[Sequence, int], logits: Logits) -> None:
        """Take a step of a beam search, unless it was pushed out in this very step."""
        first = request.sequences[0]
        if request.search is None and first in rows and first.slot != NO_SLOT:
            first.state = self._state(request)
            ends = search_ends(request.sampling, tuple(self._eos_ids))
            request.search = BeamSearch(request, self._decoder, self._sampler, self._scheduler, ends)
        search = request.search
        if search is None or not all(sequence in rows for sequence in search.sequences):
            return
        search.step(logits[[rows[sequence] for sequence in search.sequences]])
        if search.finished:
            found = search.best()
            for sample in range(request.sampling.n):
                # masks may leave fewer hypotheses than were asked for
                tokens, logprobs = found[sample] if sample < len(found) else ((), ())
                self.generated += len(tokens)
                ended = search_ending(tokens, request.sampling, self._eos_ids)
                self._events.append(told(request, sample, tokens, logprobs, ended))
            self._close(request)


def failure(error: Exception) -> str:
    """Say what failed; the traceback of what nobody expected goes to standard error."""
    if isinstance(error, ModelError):
        return str(error)
    traceback.print_exception(error)
    return f"unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
