"""Finding stop texts in a text that arrives in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class StopPatterns:
    """Stop texts as one automaton (Aho and Corasick, 1975): however many, a character costs the same.

    Args:
        stops: texts, none empty; at least one.
    """

    __slots__ = ("__weakref__", "depths", "fails", "matches", "nexts")

    def __init__(self, stops: Sequence[str]) -> None:
        self.nexts: list[dict[str, int]] = [{}]
        self.fails = [0]
        self.depths = [0]
        self.matches = [""]  # the longest stop text that ends in this state
        for stop in stops:
            state = 0
            for character in stop:
                following = self.nexts[state].get(character)
                if following is None:
                    following = len(self.nexts)
                    self.nexts[state][character] = following
                    self.nexts.append({})
                    self.fails.append(0)
                    self.depths.append(self.depths[state] + 1)
                    self.matches.append("")
                state = following
            self.matches[state] = stop
        self._link()

    def _link(self) -> None:
        """Give each state the one to go on from when no longer text fits: its longest proper suffix."""
        waiting = deque(self.nexts[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self.nexts[state].items():
                waiting.append(following)
                back = self.fails[state]
                while back and character not in self.nexts[back]:
                    back = self.fails[back]
                self.fails[following] = self.nexts[back].get(character, 0)
            if not self.matches[state]:
                self.matches[state] = self.matches[self.fails[state]]


class Released(NamedTuple):
    """``text`` that can no longer be part of a stop text, and the stop text that was found ("" for none)."""

    text: str
    stop: str = ""


class StopSearch:
    """Looks for stop texts in one sample's text and holds back only what may become one.

    The match that ends first wins, the longest of those that end together: so the result does not depend on
    the pieces in which the text arrives.
    """

    __slots__ = ("_held", "_include", "_patterns", "_state")

    def __init__(self, patterns: StopPatterns, *, include: bool = False) -> None:
        """Begin a text; ``include`` leaves the stop text at its end."""
        self._patterns = patterns
        self._include = include
        self._state = 0
        self._held = ""

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def feed(self, text: str, *, armed: bool = True) -> Released:
        """Take more text; while not ``armed``, what ends in it is no match."""
        if not text:
            return Released("")
        nexts, fails, matches = self._patterns.nexts, self._patterns.fails, self._patterns.matches
        state = self._state
        whole = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            while state and character not in nexts[state]:
                state = fails[state]
            state = nexts[state].get(character, 0)
            if matches[state] and armed:
                stop = matches[state]
                self._state, self._held = 0, ""
                return Released(whole[: end if self._include else end - len(stop)], stop)
        self._state = state
        kept = len(whole) - self._patterns.depths[state]
        self._held = whole[kept:]
        return Released(whole[:kept])

    def flush(self) -> str:
        """Return what was held back; the text is over."""
        held, self._held, self._state = self._held, "", 0
        return held
