"""Reading one tool call, a JSON object with a name and arguments, while it is being written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final

ARGUMENT_KEYS: Final = frozenset({"arguments", "parameters"})
SPACE: Final = " \t\r\n"
_PLAIN: Final = re.compile(r'[^"\\{}\[\]]+')
_STRING: Final = re.compile(r'[^"\\]+')
_SCALAR: Final = re.compile(r"[^,}\s]+")


class _Mode(Enum):
    OPEN = auto()  # before {
    KEY = auto()  # before a key or }
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()  # before a value
    IN_STRING = auto()
    IN_SCALAR = auto()
    IN_NESTED = auto()
    NEXT = auto()  # before , or }


class CallScanner:
    """Takes the text of one JSON object in pieces and gives the arguments' text as it was written.

    Args:
        known: a call has arguments and one of these names, another object is none; None takes any name,
            arguments or not.

    Attributes:
        name: of the function, "" until it was read.
        done: the object is complete.
        failed: this is no tool call; ``raw`` has what was taken.
        raw: the text that was taken.
    """

    def __init__(self, known: Collection[str] | None = None) -> None:
        self.name = ""
        self.done = False
        self.failed = False
        self.raw = ""
        self._known = known
        self._mode = _Mode.OPEN
        self._key = ""
        self._value = ""
        self._arguments: str | None = None  # read before the name
        self._sent = False  # some of the arguments
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._alone = False  # the arguments are all there is

    @property
    def found(self) -> bool:
        """Whether this is a call for certain, whatever follows."""
        return bool(self.name) and not self.failed and (self._known is None or self._sent)

    def begin_arguments(self, name: str) -> None:
        """Take the object that follows as the arguments of ``name``."""
        self.name = name
        self._key = "arguments"
        self._mode = _Mode.VALUE
        self._alone = True

    def feed(self, text: str, start: int = 0) -> tuple[str, int]:
        """Take ``text`` from ``start``; return new text of the arguments and where this stopped reading."""
        new: list[str] = []
        place = start
        while place < len(text) and not (self.done or self.failed):
            place = self._step(text, place, new)
        self.raw += text[start:place]
        return "".join(new), place

    def _step(self, text: str, place: int, new: list[str]) -> int:
        """Take at least one character; return the place of the next."""
        mode, character = self._mode, text[place]
        if mode in (_Mode.IN_KEY, _Mode.IN_STRING):
            return self._in_string(text, place, new)
        if mode is _Mode.IN_NESTED:
            return self._in_nested(text, place, new)
        if mode is _Mode.IN_SCALAR:
            return self._in_scalar(text, place, new)
        if character not in SPACE:
            if mode is _Mode.VALUE:
                self._begin_value(character, new)
                return place + (character in '"{[')
            self._structure(character, new)
        return place + 1

    def _structure(self, character: str, new: list[str]) -> None:
        """Take a character between keys and values."""
        mode = self._mode
        if mode is _Mode.OPEN and character == "{":
            self._mode = _Mode.KEY
        elif mode is _Mode.KEY and character == '"':
            self._mode, self._value = _Mode.IN_KEY, '"'
        elif mode is _Mode.COLON and character == ":":
            self._mode = _Mode.VALUE
        elif mode is _Mode.NEXT and character == ",":
            self._mode = _Mode.KEY
        elif mode in (_Mode.KEY, _Mode.NEXT) and character == "}":
            self._close(new)
        else:
            self.failed = True

    def _begin_value(self, character: str, new: list[str]) -> None:
        self._value = ""
        if character == '"':
            self._mode, self._value = _Mode.IN_STRING, '"'
        elif character in "{[":
            self._mode, self._depth, self._quoted = _Mode.IN_NESTED, 1, False
            self._add(character, new)
        elif character in ",}:]":
            self.failed = True
        else:
            self._mode = _Mode.IN_SCALAR

    def _in_string(self, text: str, place: int, new: list[str]) -> int:
        if self._escaped:
            self._escaped = False
            self._value += text[place]
            return place + 1
        found = _STRING.match(text, place)
        if found is not None:
            self._value += found.group()
            return found.end()
        self._value += text[place]
        if text[place] == "\\":
            self._escaped = True
        elif self._mode is _Mode.IN_KEY:
            self._key = self._string()
            self._mode = _Mode.COLON
        else:
            self._end_value(new)
        return place + 1

    def _in_scalar(self, text: str, place: int, new: list[str]) -> int:
        found = _SCALAR.match(text, place)
        if found is None:
            self._end_value(new)
            return place
        self._value += found.group()
        return found.end()

    def _in_nested(self, text: str, place: int, new: list[str]) -> int:
        """Take part of an object or list; only brackets and quotes matter."""
        if self._escaped:
            self._escaped = False
            self._add(text[place], new)
            return place + 1
        found = (_STRING if self._quoted else _PLAIN).match(text, place)
        if found is not None:
            self._add(found.group(), new)
            return found.end()
        character = text[place]
        self._add(character, new)
        if character == "\\":
            self._escaped = self._quoted
        elif character == '"':
            self._quoted = not self._quoted
        elif character in "{[":
            self._depth += 1
        else:
            self._depth -= 1
            if self._depth == 0:
                self._end_value(new)
        return place + 1

    def _add(self, text: str, new: list[str]) -> None:
        """Take text of a nested value; arguments go out at once when it is known whose they are."""
        if self.name and self._key in ARGUMENT_KEYS and self._arguments is None:
            new.append(text)
            self._sent = True
        else:
            self._value += text

    def _end_value(self, new: list[str]) -> None:
        nested = self._mode is _Mode.IN_NESTED
        self._mode = _Mode.NEXT
        self.done = self._alone
        if self._key == "name" and not self.name:
            self.name = self._string() if self._value.startswith('"') else ""
            wrong = not self.name or (self._known is not None and self.name not in self._known)
            self.failed = self.failed or wrong
            if self._arguments is not None and not self.failed:
                new.append(self._arguments)
                self._sent = True
        elif self._key in ARGUMENT_KEYS and self._arguments is None and not self._sent:
            self._arguments = self._value if nested else self._scalar()
            if self.name and not self.failed:
                new.append(self._arguments)
                self._sent = True

    def _close(self, new: list[str]) -> None:
        self.done = True
        if not self.name or (self._known is not None and not self._sent):
            self.done, self.failed = False, True
        elif not self._sent:
            new.append("{}")

    def _scalar(self) -> str:
        """Return arguments that are not an object as text: some models write JSON inside a string."""
        if self._value.startswith('"'):
            return self._string()
        return "{}" if self._value == "null" else self._value

    def _string(self) -> str:
        try:
            value = json.loads(self._value, strict=False)
        except ValueError:
            self.failed = True
            return ""
        return value if isinstance(value, str) else ""
