"""Prompt lookup: guesses the next tokens by finding what followed the last few tokens before.

Output often repeats input (quotations, code, names). A guess costs nothing to make, and a decoder verifies
several tokens in hardly more time than one takes, as its weights are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LONGEST: Final = 3
SHORTEST: Final = 2
"""Lengths of the token runs that are looked up, the longest first: shorter ones repeat by chance."""


class PromptLookup:
    """The index of one sequence's token runs, kept as the sequence grows: constant time per token."""

    def __init__(self, most: int) -> None:
        """Guess up to ``most`` tokens at a time, at least 1."""
        self._most = most
        self._length = most
        self._seen = 0
        # where the token after a run's latest occurrence is; runs differ in length, so one table holds all
        self._after: dict[tuple[int, ...], int] = {}
        self._place: int | None = None

    def draft(self, tokens: Sequence[int], room: int) -> list[int]:
        """Return up to ``room`` tokens that may follow ``tokens``, which only grows between calls."""
        for end in range(self._seen + 1, len(tokens) + 1):
            place = None
            for size in range(min(LONGEST, end), SHORTEST - 1, -1):
                run = tuple(tokens[end - size : end])
                if place is None:
                    place = self._after.get(run)
                self._after[run] = end
            self._place = place
        self._seen = len(tokens)
        if self._place is None:
            return []
        size = min(room, self._length)
        draft = list(tokens[self._place : self._place + size])
        if draft:
            # a run that overlaps its own repetition goes on as the repetition does
            period = len(draft)
            while len(draft) < size:
                draft.append(draft[len(draft) - period])
        return draft

    def learn(self, drafted: int, accepted: int) -> None:
        """Guess more after a guess that was right to its end, fewer after one that was all wrong."""
        if accepted == drafted:
            self._length = min(self._most, self._length * 2)
        elif not accepted:
            self._length = max(1, self._length // 2)
