"""Edits of one sequence's logits before a token is chosen: biases, masks, penalties.

The order is fixed: logit bias, allowed ids, bad words, minimum length, repetition penalty, frequency and
presence penalties, watermark. Definitions follow transformers' logits processors and OpenAI's penalties. Work
per step depends on the number of distinct tokens, not on the length of the sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation import watermark
from headrace.runtimes.generation.logprobs import Row
from headrace.runtimes.generation.parameters import Sampling

T = TypeVar("T", bound=np.generic)

_NEVER: Final = np.float32(-np.inf)


@dataclass(slots=True)
class TokenCounts:
    """The distinct tokens of a growing sequence and how often each occurs: ``ids[:size]``, ``counts[:size]``.

    Ids outside ``[0, vocabulary_size)`` are left out: no logit belongs to them.
    """

    vocabulary_size: int
    ids: NDArray[np.int64]
    counts: Row
    places: dict[int, int]
    size: int

    @classmethod
    def of(cls, tokens: Sequence[int], vocabulary_size: int) -> TokenCounts:
        """Count ``tokens``."""
        given = np.asarray(tokens, np.int64)
        ids, counts = np.unique(given[(given >= 0) & (given < vocabulary_size)], return_counts=True)
        places = {token: place for place, token in enumerate(ids.tolist())}
        room = ids.size + 32
        return cls(
            vocabulary_size, _grown(ids, room), _grown(counts.astype(np.float32), room), places, ids.size
        )

    def add(self, token: int) -> None:
        """Count one more token."""
        place = self.places.get(token)
        if place is None:
            if not 0 <= token < self.vocabulary_size:
                return
            if self.size == self.ids.size:
                self.ids, self.counts = _grown(self.ids, 2 * self.size), _grown(self.counts, 2 * self.size)
            place = self.places[token] = self.size
            self.ids[place] = token
            self.size += 1
        self.counts[place] += 1

    def copy(self) -> TokenCounts:
        """Return an independent copy."""
        return replace(self, ids=self.ids.copy(), counts=self.counts.copy(), places=self.places.copy())


@dataclass(slots=True)
class _History:
    """What the edits know about the tokens so far.

    ``seen`` are the tokens of prompt and output, ``counted`` those that frequency and presence penalties
    count; None where no penalty asks. ``recent`` is the output's end, as long as bad words need it.
    """

    length: int
    previous: int
    recent: tuple[int, ...]
    seen: TokenCounts | None
    counted: TokenCounts | None

    def copy(self) -> _History:
        return replace(
            self,
            seen=self.seen.copy() if self.seen is not None else None,
            counted=self.counted.copy() if self.counted is not None else None,
        )


class Processors:
    """The edits that one sequence's parameters ask for, with the history that they need."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocabulary_size: int, eos_ids: Sequence[int]
    ) -> None:
        def known(ids: Iterable[int]) -> NDArray[np.int64]:
            return np.array([token for token in ids if 0 <= token < vocabulary_size], np.int64)

        self._sampling = sampling
        biases = {token: bias for token, bias in sampling.logit_bias if 0 <= token < vocabulary_size}
        self._bias_ids = known(biases)
        self._biases = np.array([*biases.values()], np.float32)
        self._allowed = known(sampling.allowed_token_ids)
        self._ends = known({*eos_ids, *sampling.stop_token_ids})
        # as in transformers a bad word cannot take away the model's end
        self._bad_tokens = known({w[0] for w in sampling.bad_words if len(w) == 1} - set(eos_ids))
        self._bad_words = tuple(
            {word for word in sampling.bad_words if len(word) > 1 and 0 <= word[-1] < vocabulary_size}
        )
        self._longest = max((len(word) for word in self._bad_words), default=1) - 1
        self._green_ids = np.arange(vocabulary_size, dtype=np.uint32) if sampling.watermark else None
        self.history = _History(0, prompt[-1] if prompt else 0, (), None, None)
        if sampling.repetition_penalty != 1:
            self.history.seen = TokenCounts.of(prompt, vocabulary_size)
        if sampling.frequency_penalty or sampling.presence_penalty:
            counted = prompt if sampling.penalize_prompt else ()
            self.history.counted = TokenCounts.of(counted, vocabulary_size)
        self._always = bool(
            self._bias_ids.size
            or sampling.allowed_token_ids
            or self._bad_tokens.size
            or self._bad_words
            or sampling.watermark
            or self.history.seen
            or self.history.counted
        )

    @property
    def active(self) -> bool:
        """Whether the next row may be changed at all."""
        return self._always or self.history.length < self._sampling.min_tokens

    def apply(self, row: Row) -> None:
        """Edit the logits of the next token, ``[V]``, in place."""
        sampling, history = self._sampling, self.history
        if self._bias_ids.size:
            row[self._bias_ids] += self._biases
        if sampling.allowed_token_ids:
            kept = row[self._allowed]
            row.fill(_NEVER)
            row[self._allowed] = kept
        row[self._bad_tokens] = _NEVER
        for word in self._bad_words:
            if history.recent[len(history.recent) - len(word) + 1 :] == word[:-1]:
                row[word[-1]] = _NEVER
        if history.length < sampling.min_tokens:
            row[self._ends] = _NEVER
        if history.seen is not None:
            ids = history.seen.ids[: history.seen.size]
            logits, penalty = row[ids], np.float32(sampling.repetition_penalty)
            row[ids] = np.where(logits < 0, logits * penalty, logits / penalty)
        if history.counted is not None:
            size = history.counted.size
            each = history.counted.counts[:size] * np.float32(sampling.frequency_penalty)
            row[history.counted.ids[:size]] -= each + np.float32(sampling.presence_penalty)
        if self._green_ids is not None:
            row += np.float32(watermark.DELTA) * watermark.green(history.previous, self._green_ids)

    def append(self, token: int) -> None:
        """Take note of the chosen token."""
        history = self.history
        history.previous = token
        history.length += 1
        if self._longest:
            history.recent = (*history.recent, token)[-self._longest :]
        if history.seen is not None:
            history.seen.add(token)
        if history.counted is not None:
            history.counted.add(token)

    def copy(self) -> Processors:
        """Return a copy with the same history that goes its own way from here."""
        twin = copy(self)
        twin.history = self.history.copy()
        return twin


def _grown(values: NDArray[T], size: int) -> NDArray[T]:
    """Return a copy with room for ``size`` values; the new ones are 0."""
    room = np.zeros(size, values.dtype)
    room[: values.size] = values
    return room
