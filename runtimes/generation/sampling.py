"""From logits to tokens, for many sequences with parameters of their own in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation import logprobs, seeds
from headrace.runtimes.generation.logprobs import Row
from headrace.runtimes.generation.messages import Logprob
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.processors import Processors
from headrace.runtimes.generation.truncation import truncate


class Matcher(Protocol):
    """What a sequence's grammar allows next; ``headrace.runtimes.generation.structured.Matcher`` is one."""

    @property
    def terminated(self) -> bool:
        """Whether nothing but the end may follow."""

    def mask(self, row: Row) -> None:
        """Make the logits of tokens that must not come next -inf, in place."""

    def accept(self, token: int) -> None:
        """Go on with a token."""

    def copy(self) -> Matcher:
        """Return a matcher in the same state that goes its own way from here."""


class TokenSample(NamedTuple):
    """A chosen token; ``logprob`` is the model's own and None when the request did not ask for it."""

    token: int
    logprob: Logprob | None


class SamplerState:
    """What the choice of one sample's next token depends on besides the logits.

    Attributes:
        sampling: the request's parameters.
        sample: index of the sample, part of its random stream.
        seed: the request's, or the one drawn for it.
        position: tokens chosen so far, the position of the next one in the output.
        matcher: the state of the grammar, if there is one.
        processors: edits of the logits and their history.
    """

    __slots__ = ("matcher", "position", "processors", "sample", "sampling", "seed")

    def __init__(
        self,
        sampling: Sampling,
        sample: int,
        seed: int,
        position: int,
        matcher: Matcher | None,
        processors: Processors,
    ) -> None:
        self.sampling = sampling
        self.sample = sample
        self.seed = seed
        self.position = position
        self.matcher = matcher
        self.processors = processors

    @property
    def terminated(self) -> bool:
        """Whether the grammar has come to its end, so that the sample has too."""
        return self.matcher is not None and self.matcher.terminated


class Sampler:
    """Chooses tokens. Holds no state of sequences: that is in their :class:`SamplerState`.

    Where masks leave nothing the first of ``eos_ids`` is chosen (0 without any).
    """

    def __init__(self, vocabulary_size: int, eos_ids: Sequence[int]) -> None:
        self._vocabulary_size = vocabulary_size
        self._eos_ids = tuple(eos_ids)

    def begin(
        self, sampling: Sampling, prompt: Sequence[int], sample: int, matcher: Matcher | None
    ) -> SamplerState:
        """Return the state before the first token; draws a seed where the request has none."""
        seed = seeds.draw_seed() if sampling.seed is None else sampling.seed
        processors = Processors(sampling, prompt, self._vocabulary_size, self._eos_ids)
        return SamplerState(sampling, sample, seed, 0, matcher, processors)

    def fork(self, state: SamplerState, sample: int) -> SamplerState:
        """Return a state with the same history and another random stream."""
        matcher = state.matcher.copy() if state.matcher is not None else None
        return SamplerState(
            state.sampling, sample, state.seed, state.position, matcher, state.processors.copy()
        )

    def append(self, state: SamplerState, token: int) -> None:
        """Add a token to the history; only for tokens that :meth:`sample` did not choose."""
        state.position += 1
        state.processors.append(token)
        if state.matcher is not None:
            state.matcher.accept(token)

    def sample(
        self,
        logits: NDArray[np.float32],
        states: Sequence[SamplerState],
        best: NDArray[np.intp] | None = None,
    ) -> list[TokenSample]:
        """Choose the next token of each sequence and add it to its state.

        Args:
            logits: ``[R, V]``, a row for each state; may be changed.
            states: different objects.
            best: ``[R]``, where each row has its maximum; found here where it is not known.
        """
        with np.errstate(all="ignore"):  # -inf and extreme temperatures are ordinary here
            plain = all(_is_plain(state) for state in states)
            tokens = (logits.argmax(axis=1) if best is None else best).tolist() if plain else None
            chosen = []
            for index, state in enumerate(states):
                row = logits[index]
                wanted = state.sampling.logprobs
                edited = tokens is None and _edits(state)
                raw = row.copy() if edited and wanted is not None else row
                token = tokens[index] if tokens is not None else self._choose(row, state)
                described = None if wanted is None else logprobs.token_logprob(raw, token, wanted)
                chosen.append(TokenSample(token, described))
                self.append(state, token)
            return chosen

    def log_probabilities(
        self, logits: NDArray[np.float32], states: Sequence[SamplerState]
    ) -> NDArray[np.float32]:
        """Return what beam search adds up, ``[R, V]``: log-softmax of the logits, then every edit and mask.

        ``logits`` is not changed, and neither are the states.
        """
        with np.errstate(all="ignore"):
            rows = np.stack([logprobs.log_softmax(row) for row in logits])
            for row, state in zip(rows, states, strict=True):
                if _edits(state):
                    self._edit(row, state)
        return rows

    def prompt_logprobs(self, logits: NDArray[np.float32], targets: Sequence[int], top: int) -> list[Logprob]:
        """Describe each of ``targets`` under its row of ``logits``, ``[T, V]``, which is not changed."""
        with np.errstate(all="ignore"):
            return logprobs.prompt_logprobs(logits, targets, top)

    def _choose(self, row: Row, state: SamplerState) -> int:
        if _edits(state):
            self._edit(row, state)
        best = int(row.argmax())
        if row[best] == -np.inf:
            return self._eos_ids[0] if self._eos_ids else 0
        # nothing to weigh in a row of infinities or NaN
        if state.sampling.temperature <= 0 or not np.isfinite(row[best]):
            return best
        return truncate(row, state.sampling).draw(seeds.uniform(state.seed, state.sample, state.position))

    def _edit(self, row: Row, state: SamplerState) -> None:
        if state.processors.active:
            state.processors.apply(row)
        if state.matcher is not None:
            state.matcher.mask(row)


def _edits(state: SamplerState) -> bool:
    return state.matcher is not None or state.processors.active


def _is_plain(state: SamplerState) -> bool:
    """Whether the most likely token is the answer."""
    return state.sampling.temperature <= 0 and not _edits(state)
