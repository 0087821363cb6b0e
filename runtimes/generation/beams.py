"""Bookkeeping of one beam search: which hypotheses go on, which are finished, when to end.

The rules are those of transformers' ``generate(num_beams=…, early_stopping=False)``, so that the same
log-probabilities give the same tokens. The caller computes log-probabilities and moves KV caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation.logprobs import largest


@dataclass(frozen=True, slots=True)
class _Node:
    """One token of a hypothesis, and the row of its step's log-probabilities that it was taken from."""

    token: int
    row: int
    before: _Node | None


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    score: np.float32
    last: _Node


class Beams:
    """The state of one beam search of ``width`` beams, at least 1, that returns the best ``n``.

    ``max_tokens`` is the number of new tokens, at least 1. ``eos_ids`` are all ids that finish a hypothesis
    (stop token ids among them; none with ``ignore_eos``, unless a grammar may demand the end); the id is the
    hypothesis' last token. Scores are float32 sums of log-probabilities; a finished one is divided by its
    length in new tokens to the power of ``length_penalty``.
    """

    def __init__(
        self, width: int, n: int, length_penalty: float, max_tokens: int, eos_ids: Sequence[int]
    ) -> None:
        self.width = width
        self._n = n
        self._length_penalty = length_penalty
        self._max_tokens = max_tokens
        self._eos_ids = frozenset(eos_ids)
        # every beam may end on every id of the end, and ``width`` must be left to go on
        self._keep = max(2, 1 + len(self._eos_ids)) * width
        self._length = 0
        self._scores = np.zeros(1, np.float32)
        self._running: list[_Node | None] = [None]
        self._pool: list[_Hypothesis] = []
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether the search is over: nothing may be advanced any more."""
        return self._finished

    def start(self, logprobs: NDArray[np.float32]) -> list[tuple[int, int]]:
        """Take the first step from the prompt's last row, ``[V]``; otherwise as :meth:`advance`."""
        return self.advance(logprobs[np.newaxis])

    def advance(self, logprobs: NDArray[np.float32]) -> list[tuple[int, int]]:
        """Take a step.

        Args:
            logprobs: ``[B, V]``, one row for each running beam in the order in which they were returned;
                -inf for tokens that must not be chosen. Log-softmax first, then any processors.

        Returns:
            ``(parent, token)`` of the beams that go on, best first: ``parent`` is a row of ``logprobs``. At
            most ``width``; fewer only where nothing else is possible. Empty once the search is finished.
        """
        scores = logprobs + self._scores[:, np.newaxis]
        vocabulary = scores.shape[1]
        flat = scores.reshape(-1)
        best = largest(flat, self._keep)
        self._length += 1
        last_step = self._length >= self._max_tokens
        running: list[tuple[int, int]] = []
        running_scores: list[np.float32] = []
        nodes: list[_Node | None] = []
        for place, index in enumerate(best):
            parent, token = divmod(int(index), vocabulary)
            if last_step or token in self._eos_ids:
                # the candidates behind the first ``width`` exist only so that enough beams can go on
                if place < self.width:
                    self._finish(flat[index], _Node(token, parent, self._running[parent]))
            elif len(running) < self.width:
                running.append((parent, token))
                running_scores.append(flat[index])
                nodes.append(_Node(token, parent, self._running[parent]))
        self._scores = np.array(running_scores, np.float32)
        self._running = nodes
        self._finished = not running or not self._can_improve()
        return [] if self._finished else running

    def best(self) -> list[tuple[tuple[int, ...], float]]:
        """Return ``(token ids, score)`` of the best ``n`` finished hypotheses, best first.

        Fewer than ``n`` where fewer exist (the masks allowed no more).
        """
        return [
            (tuple(node.token for node in _path(hypothesis.last)), float(hypothesis.score))
            for hypothesis in self._pool[: self._n]
        ]

    def rows(self) -> list[tuple[int, ...]]:
        """Return, for each of :meth:`best`, the row of each step's ``logprobs`` its token was taken from.

        With this a caller that kept something of every row finds what belongs to the tokens.
        """
        return [tuple(node.row for node in _path(hypothesis.last)) for hypothesis in self._pool[: self._n]]

    def _finish(self, score: np.float32, last: _Node) -> None:
        self._pool.append(_Hypothesis(self._penalized(score), last))
        # stable: among equals the older hypothesis stays ahead
        self._pool.sort(key=lambda finished: -finished.score)
        del self._pool[self.width :]

    def _can_improve(self) -> bool:
        """Whether the best running beam, at its present length, beats the worst of a full pool."""
        if len(self._pool) < self.width:
            return True
        return bool(self._penalized(self._scores[0]) > self._pool[-1].score)

    def _penalized(self, score: np.float32) -> np.float32:
        with np.errstate(all="ignore"):  # absurd penalties make 0 or infinity, not an error
            return np.float32(score / np.float32(np.power(float(self._length), self._length_penalty)))


def _path(last: _Node) -> list[_Node]:
    path = []
    node: _Node | None = last
    while node is not None:
        path.append(node)
        node = node.before
    return path[::-1]
