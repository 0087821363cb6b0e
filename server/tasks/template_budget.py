"""What a chat template of a request may use up: time, and the size of all that it makes."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any, Final

from jinja2.exceptions import SecurityError

ELEMENT: Final = 8
"""What an element of a container costs, in characters; so does every step that a template takes."""
MAX_INTEGER_BITS: Final = 4096
MAX_FIELD_DIGITS: Final = 9
_LOOKS: Final = 1024  # elements of a container between two looks at the clock
_DIGITS: Final = re.compile(r"\d+")


class Budget:
    """What is left of the time and of the characters of one rendering; each use raises when it is over.

    Raises (from every method that is not told to return): SecurityError.
    """

    __slots__ = ("_deadline", "_left", "_seconds")

    def __init__(self, characters: int, seconds: float) -> None:
        """Begin now."""
        self._left = characters
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def spend(self, characters: int = 0) -> None:
        """Note a step of the template that makes or reads so many characters."""
        self._left -= characters + ELEMENT
        if self._left < 0:
            raise SecurityError("it does more than a chat template may: its loops or its texts are too long")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {self._seconds:g} seconds")

    def count(self, values: Iterable[Any], characters: int = 0) -> Iterator[Any]:
        """Yield the values; each is a step, of so many characters."""
        for value in values:
            self.spend(characters)
            yield value

    def weigh(self, value: Any, indent: int = 0) -> None:
        """Note that ``value`` was made, with everything that printing it would visit.

        Shared parts count as often as they appear: lists of lists of lists grow without taking up memory, but
        not without taking time. ``indent`` is what each element costs more for each container around it.
        """
        stack = [(value, 0)]
        seen = 0
        while stack:
            each, depth = stack.pop()
            seen += 1
            cost = depth * indent
            if isinstance(each, (str, bytes, range)):
                cost += len(each)
            elif isinstance(each, int):
                if each.bit_length() > MAX_INTEGER_BITS:
                    raise SecurityError("a number is too large")
            elif isinstance(each, Mapping):
                cost += len(each) * ELEMENT
                stack += [(part, depth + 1) for item in each.items() for part in item]
            elif isinstance(each, (list, tuple, AbstractSet, ValuesView)):
                cost += len(each) * ELEMENT
                stack += [(part, depth + 1) for part in each]
            self._left -= cost
            if self._left < 0 or seen % _LOOKS == 0:
                self.spend()
        self.spend()

    def weigh_percent(self, layout: str, values: Any) -> None:
        """Note what ``layout % values`` may make, before it is made."""
        if isinstance(values, Mapping):
            numbers = list(values.values())
        else:
            numbers = list(values) if isinstance(values, tuple) else [values]
        widths = [abs(int(number)) for number in numbers if isinstance(number, (int, float))]
        starred = max(widths, default=0) if "*" in layout else 0
        self._weigh_fields(layout[layout.find("%") :], layout.count("%"), values, starred)

    def weigh_format(self, layout: str, values: Any) -> None:
        """Note what ``layout.format(...)`` may make, before it is made."""
        fields = [field for field in string.Formatter().parse(layout) if field[1] is not None]
        specifications = " ".join(field[2] or "" for field in fields)
        if "{" in specifications:
            raise SecurityError("a format whose width is a field itself is not possible here")
        self._weigh_fields(specifications, len(fields), values, 0)

    def _weigh_fields(self, widths: str, fields: int, values: Any, starred: int) -> None:
        for digits in _DIGITS.findall(widths):
            if len(digits) > MAX_FIELD_DIGITS:
                raise SecurityError("a field is too wide")
            self.spend(int(digits))
        before = self._left
        self.weigh(values)
        self.spend(fields * (before - self._left + starred))
