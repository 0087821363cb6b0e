"""How models write tool calls, and reading them while they are being written.

One parser serves streamed and whole answers, so both have the same content and calls. Formats, by the names
that vLLM gives its parsers:

* ``hermes``: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` (Hermes, Qwen, SmolLM3)
* ``mistral``: ``[TOOL_CALLS][{…}, …]`` or ``[TOOL_CALLS]name{…}``
* ``llama3_json``: the answer is ``{"name": …, "parameters": {…}}``, more of them behind ``;``; objects that
  call no known function are content
* ``pythonic``: the answer is ``[name(key="value"), …]``
* ``json``: the answer is a list of calls, as a grammar forces it
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from headrace.server.tasks.tool_json import SPACE, CallScanner


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """News of one call: ``name`` comes with its first delta only, ``arguments`` are the next JSON text."""

    index: int
    name: str
    arguments: str


class Parsed(NamedTuple):
    """What a piece of text was: content for the reader, and calls."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def then(self, later: Parsed) -> Parsed:
        """Join what followed."""
        return Parsed(self.content + later.content, self.calls + later.calls)


class ToolParser(Protocol):
    """Reads one sample's text."""

    @property
    def calls(self) -> int:
        """Calls found so far."""

    def feed(self, text: str) -> Parsed:
        """Take more text."""

    def finish(self) -> Parsed:
        """Take the end of the text."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way of writing calls as JSON objects.

    Attributes:
        opening: what comes before calls; "" for nothing.
        closing: what comes after calls; "" for nothing.
        bare: calls may stand at the very beginning of the answer, without ``opening``; such a call has
            arguments and the name of a known function.
        named: a name may stand before the object, which has the arguments only.
    """

    opening: str = ""
    closing: str = ""
    bare: bool = False
    named: bool = False


JSON_FORMATS: Final[Mapping[str, ToolFormat]] = MappingProxyType(
    {
        "hermes": ToolFormat("<tool_call>", "</tool_call>"),
        "mistral": ToolFormat("[TOOL_CALLS]", named=True),
        "llama3_json": ToolFormat("<|python_tag|>", bare=True),
        "json": ToolFormat(bare=True),
    }
)
_BETWEEN: Final = SPACE + ",;[]"


class JsonCalls:
    """Reads answers of one :class:`ToolFormat`.

    Args:
        form: the format.
        names: of the functions that may be called.
        limit: calls to report, further ones are dropped; None for all.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], limit: int | None = None) -> None:
        self.calls = 0
        self._form = form
        self._names = names
        self._limit = limit
        self._buffer = ""
        self._scanner: CallScanner | None = None
        self._header = ""  # what stood before the object that is scanned
        self._reported = False  # the scanned call has a delta
        self._inside = False  # between the calls of an opened area
        self._known: Collection[str] | None = None  # names of that area's calls, None for any
        self._before = 0  # calls before that area
        self._fresh = form.bare  # nothing but space has come yet

    def feed(self, text: str) -> Parsed:
        """Take more text."""
        self._buffer += text
        content: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._buffer and self._step(content, calls):
            pass
        return Parsed("".join(content), tuple(calls))

    def finish(self) -> Parsed:
        """Take the end: what looked like the beginning of a call is content after all."""
        content, self._buffer = self._buffer, ""
        if self._scanner is not None:
            content = "" if self._reported else self._header + self._scanner.raw
        elif self._inside:
            content = self._header + content if self.calls == self._before else ""
        elif self.calls and content.isspace():
            content = ""
        return Parsed(content)

    def _step(self, content: list[str], calls: list[ToolCallDelta]) -> bool:
        """Go on with the buffer; False when more text must come first."""
        if self._scanner is not None:
            return self._scan(self._scanner, content, calls)
        if self._inside:
            return self._between(content)
        return self._outside(content)

    def _outside(self, content: list[str]) -> bool:
        buffer, opening = self._buffer, self._form.opening
        if self._fresh:
            stripped = buffer.lstrip(SPACE)
            if not stripped:
                return False
            self._fresh = False
            if stripped[0] in "{[" and not _may_become(stripped, opening):
                self._inside, self._known = True, self._names
                return True
        if not opening:
            content.append(buffer)
            self._buffer = ""
            return False
        if self.calls and not buffer.strip(SPACE):
            return False
        place = buffer.find(opening)
        if place >= 0:
            content.append(buffer[:place].rstrip(SPACE))
            self._buffer = buffer[place + len(opening) :]
            self._inside, self._before, self._known = True, self.calls, None
            self._header = buffer[len(buffer[:place].rstrip(SPACE)) : place] + opening
            return True
        # Space is kept back too: before a call it is no content.
        kept = len(buffer) - _overlap(buffer, opening)
        kept = len(buffer[:kept].rstrip(SPACE))
        content.append(buffer[:kept])
        self._buffer = buffer[kept:]
        return False

    def _between(self, content: list[str]) -> bool:
        """Look for the next call of an opened area, or its end."""
        form = self._form
        buffer = self._buffer.lstrip(SPACE)
        self._header += self._buffer[: len(self._buffer) - len(buffer)]
        self._buffer = buffer
        for tag in (form.opening, form.closing):
            if tag and buffer.startswith(tag):
                self._buffer = buffer[len(tag) :]
                self._header += tag
                if tag == form.closing:
                    self._leave(content)
                return True
            if tag.startswith(buffer):
                return False  # it may become the tag; there may be nothing at all, too
        if buffer[0] == "{":
            self._scanner, self._reported = CallScanner(self._known), False
        elif buffer[0] in _BETWEEN:
            self._header += buffer[0]
            self._buffer = buffer[1:]
        elif form.named and (buffer[0].isalnum() or buffer[0] == "_"):
            return self._named(buffer)
        else:
            self._leave(content)
        return True

    def _leave(self, content: list[str]) -> None:
        """End an area; one without calls was content."""
        self._inside = False
        if self.calls == self._before:
            content.append(self._header)
        self._header = ""

    def _named(self, buffer: str) -> bool:
        """Read ``name{…}`` (markers between them dropped) as the object that other models write."""
        place = buffer.find("{")
        if place < 0:
            return False
        name = buffer[:place].partition("[")[0].strip()
        self._scanner, self._reported = CallScanner(), False
        self._scanner.begin_arguments(name)
        self._buffer = buffer[place:]
        return True

    def _scan(self, scanner: CallScanner, content: list[str], calls: list[ToolCallDelta]) -> bool:
        arguments, place = scanner.feed(self._buffer)
        self._buffer = self._buffer[place:]
        if scanner.found:
            self._report(scanner.name, arguments, calls)
        if scanner.failed:
            self._scanner, self._inside = None, False
            if not self._reported:
                content.append(self._header + scanner.raw)
            self._header = ""
        elif scanner.done:
            self._scanner, self._header = None, ""
        return True

    def _report(self, name: str, arguments: str, calls: list[ToolCallDelta]) -> None:
        first, self._reported = not self._reported, True
        self.calls += first
        index = self.calls - 1
        if (first or arguments) and (self._limit is None or index < self._limit):
            calls.append(ToolCallDelta(index, name if first else "", arguments))


class NamedCall:
    """The whole answer is the arguments of one function, as a grammar forces it.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self.calls = 0
        self._name = name

    def feed(self, text: str) -> Parsed:
        """Take more of the arguments."""
        if not text:
            return Parsed()
        name, self.calls = ("" if self.calls else self._name), 1
        return Parsed("", (ToolCallDelta(0, name, text),))

    def finish(self) -> Parsed:
        """Take the end; there is nothing left."""
        return Parsed()


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of ``text`` may begin ``tag``."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def _may_become(text: str, tag: str) -> bool:
    return bool(tag) and (text.startswith(tag) or tag.startswith(text))
