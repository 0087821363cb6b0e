"""Samples the next tokens of all sequences of a step, guessed ones verified row after row."""

from __future__ import annotations

from collections.abc import Callable, Container
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.generation.endings import ending
from headrace.runtimes.generation.sampling import Sampler, SamplerState, TokenSample
from headrace.runtimes.generation.sequence import Ending, Request, Sequence


class Pick:
    """A sample whose next tokens are chosen in this step, the first of them from row ``row``.

    Attributes:
        chosen: the tokens, as many as guesses were right and one more.
        ending: how the last of them ended the sample, if it did.
    """

    __slots__ = ("chosen", "ending", "row", "sequence", "state")

    def __init__(self, sequence: Sequence, state: SamplerState, row: int) -> None:
        self.sequence = sequence
        self.state = state
        self.row = row
        self.chosen: list[TokenSample] = []
        self.ending: Ending | None = None


def choose(
    picks: Rows[Pick],
    logits: NDArray[np.float32],
    best: NDArray[np.intp],
    sampler: Sampler,
    eos_ids: Container[int],
    fail: Callable[[Request, Exception], None],
) -> int:
    """Append the new tokens to all sequences and return how many there are.

    Each is sampled as if there were no guesses; where it is the guessed one, the row behind the guess is that
    of the next token. The sampler may change ``logits``. What it raises goes to ``fail``, with every request
    that it was sampling for. ``best`` is where each row of ``logits`` has its maximum.
    """
    active = [pick for pick in picks if not pick.sequence.request.closed]
    depth = count = 0
    while active:
        rows = [pick.row + depth for pick in active]
        # every row once and in order is the array itself
        own, own_best = (logits, best) if rows == list(range(len(logits))) else (logits[rows], best[rows])
        try:
            chosen = sampler.sample(own, [pick.state for pick in active], own_best)
        except Exception as error:  # noqa: BLE001 - how far it got cannot be told
            for pick in active:
                fail(pick.sequence.request, error)
            break
        count += len(chosen)
        following = []
        for pick, sample in zip(active, chosen, strict=True):
            sequence = pick.sequence
            sequence.tokens.append(sample.token)
            pick.chosen.append(sample)
            pick.ending = ending(sequence, eos_ids)
            draft = sequence.draft
            if depth < len(draft) and draft[depth] == sample.token and pick.ending is None:
                following.append(pick)
        active = following
        depth += 1
    return count
