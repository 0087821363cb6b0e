"""Tool calls written as Python: ``[name(key="value"), other(n=1)]``, the whole answer."""

from __future__ import annotations

import ast
import json
import re
from enum import Enum, auto
from typing import Final

from headrace.server.tasks.tool_formats import Parsed, ToolCallDelta
from headrace.server.tasks.tool_json import SPACE

_BEGIN: Final = re.compile(r"\[\s*([A-Za-z_][\w.]*\s*\(?)?")
_NAMES: Final = (("true", True), ("false", False), ("null", None))
MAX_CALL_CHARACTERS: Final = 64 * 1024


class _Kind(Enum):
    UNKNOWN = auto()
    TEXT = auto()
    CALLS = auto()
    OVER = auto()  # the list has ended


class PythonicCalls:
    """Reads answers in this form; a call is reported when it is complete.

    Args:
        limit: calls to report, further ones are dropped; None for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.calls = 0
        self._limit = limit
        self._text = ""  # all of it, until it is known what it is
        self._buffer = ""
        self._place = 0  # in the buffer, where reading goes on
        self._depth = 0
        self._quote = ""
        self._kind = _Kind.UNKNOWN

    def feed(self, text: str) -> Parsed:
        """Take more text."""
        if self._kind is _Kind.TEXT:
            return Parsed(text)
        self._text += "" if self.calls else text
        if self._kind is _Kind.OVER:
            return Parsed("")
        self._buffer += text
        if self._kind is _Kind.UNKNOWN:
            self._kind = self._decide()
        calls: list[ToolCallDelta] = []
        while self._kind is _Kind.CALLS and (source := self._next_call()) is not None:
            self._kind = self._read(source, calls)
        return Parsed(self._release() if self._is_text() else "", tuple(calls))

    def finish(self) -> Parsed:
        """Take the end: what did not become a call is content, unless there were calls before."""
        return Parsed("" if self.calls else self._release())

    def _is_text(self) -> bool:
        return self._kind is _Kind.TEXT

    def _release(self) -> str:
        text, self._text = self._text, ""
        return text

    def _decide(self) -> _Kind:
        """Tell what the answer is, as soon as its beginning says so."""
        stripped = self._buffer.lstrip(SPACE)
        found = _BEGIN.match(stripped)
        if found is None:
            return _Kind.TEXT if stripped else _Kind.UNKNOWN
        if found.group().endswith("("):
            self._buffer = stripped
            self._place = 1  # behind the list's bracket
            return _Kind.CALLS
        return _Kind.UNKNOWN if found.end() == len(stripped) else _Kind.TEXT

    def _next_call(self) -> str | None:
        """Return the source of the next complete call and move behind it; None when there is none yet."""
        buffer, start = self._buffer, 0
        while self._place < len(buffer):
            character = buffer[self._place]
            self._place += 1
            if self._quote:
                if character == "\\":
                    self._place += 1
                elif character == self._quote:
                    self._quote = ""
            elif character in "\"'":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == 0 and character == ")":
                    end, self._place = self._place, 0
                    self._buffer = buffer[end:]
                    return buffer[start:end].lstrip(SPACE + ",[")
                if self._depth < 0:  # the end of the list: what follows is none of it
                    self._buffer = ""
                    self._kind = _Kind.OVER
                    return None
        return None

    def _read(self, source: str, calls: list[ToolCallDelta]) -> _Kind:
        """Report a call; a first one that cannot be read makes all of it text, later ones are dropped."""
        call = parse_call(source)
        if call is None:
            return _Kind.CALLS if self.calls else _Kind.TEXT
        self.calls += 1
        if self._limit is None or self.calls <= self._limit:
            calls.append(ToolCallDelta(self.calls - 1, *call))
        return _Kind.CALLS


def parse_call(source: str) -> tuple[str, str] | None:
    """Read ``name(key=literal, …)``; return the name and the arguments as JSON, None for anything else."""
    if len(source) > MAX_CALL_CHARACTERS:
        return None
    try:
        call = ast.parse(source, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        arguments = {word.arg: ast.literal_eval(_JsonNames().visit(word.value)) for word in call.keywords}
        return ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class _JsonNames(ast.NodeTransformer):
    """Understands JSON's own names for truth values and nothing, too."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Put a constant in place of a name that stands for one."""
        for name, value in _NAMES:
            if node.id == name:
                return ast.Constant(value)
        return node
