"""Chat templates: Jinja as Hugging Face runs it, sandboxed, compiled once, bounded.

The names and filters that a template finds are those of ``transformers``' ``apply_chat_template``, because
templates are written for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from jinja2 import Template, TemplateError, nodes

from headrace.server.errors import ChatTemplateError, InputTooLongError
from headrace.server.tasks.bounded_templates import BoundedEnvironment
from headrace.server.tasks.template_budget import Budget
from headrace.server.tasks.template_environment import TemplateEnvironment

MAX_TEMPLATES: Final = 64
MAX_TEMPLATE_CHARACTERS: Final = 256 * 1024
MAX_RENDER_SECONDS: Final = 5.0
BUDGET_CHARACTERS: Final = 16_000_000
"""What a request's own template may read and make, and as much again for each character it may print."""
BUDGET_PER_CHARACTER: Final = 16


class ChatTemplates:
    """Compiled templates, the most recently used ones; for several threads."""

    def __init__(self) -> None:
        self._environment = TemplateEnvironment()
        self._bounded = BoundedEnvironment()
        self._compiled: OrderedDict[tuple[str, bool], CompiledTemplate] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str, *, trusted: bool) -> CompiledTemplate:
        """Return the compiled form of a template; all that one does which is not ``trusted`` is counted.

        Raises:
            ChatTemplateError: it is too long, or not a template.
        """
        key = (text, trusted)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
                return known
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            reason = f"it has {len(text)} characters, expected at most {MAX_TEMPLATE_CHARACTERS}"
            raise _refused(reason, own=not trusted)
        try:
            compiled = self._compile(text, trusted=trusted)
        except Exception as error:  # of Jinja, or of Python with what Jinja made of the template
            raise _refused(f"it should be valid Jinja: {_reason(error)}", own=not trusted) from error
        with self._lock:
            self._compiled[key] = compiled
            while len(self._compiled) > MAX_TEMPLATES:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, text: str, *, trusted: bool) -> CompiledTemplate:
        tree = self._environment.parse(text)
        if trusted:
            return CompiledTemplate(self._environment.from_string(text), text, tree, None)
        parsed = self._bounded.parse(text)
        variables = self._bounded.variables(parsed)
        template = self._bounded.bounded_template(parsed)
        return CompiledTemplate(template, text, tree, self._bounded, variables)


class CompiledTemplate:
    """A template that is ready to render.

    Attributes:
        text: the source.
        wants_parts: its messages' contents are lists of parts, not strings.
        reads_tools: it does something with ``tools``.
    """

    def __init__(
        self,
        template: Template,
        text: str,
        tree: nodes.Template,
        bounds: BoundedEnvironment | None,
        variables: frozenset[str] = frozenset(),
    ) -> None:
        self._template = template
        self._bounds = bounds
        self._variables = variables
        self.text = text
        self.wants_parts = _wants_parts(tree)
        self.reads_tools = any(name.name == "tools" for name in tree.find_all(nodes.Name))

    def check_variables(self, known: AbstractSet[str]) -> None:
        """Refuse a request's template that reads other variables than those ``known``.

        Raises:
            ChatTemplateError: it does.
        """
        others = self._variables - known
        if others:
            raise _refused(
                f"it may use {', '.join(sorted(known))} only, but it uses {', '.join(sorted(others))}",
                own=True,
            )

    def render(self, variables: Mapping[str, Any], max_characters: int) -> str:
        """Render; for a thread.

        Raises:
            ChatTemplateError: the template refused the conversation, failed, or took too long.
            InputTooLongError: the text would have more than ``max_characters``.
        """
        deadline = time.monotonic() + MAX_RENDER_SECONDS
        pieces: list[str] = []
        length = 0
        with self._budget(max_characters):
            for piece in self._generate(variables):
                pieces.append(piece)
                length += len(piece)
                if length > max_characters:
                    raise InputTooLongError(
                        f"the conversation makes a prompt of more than {max_characters} characters, which "
                        "exceeds the model's maximum context length (context_length_exceeded)",
                        field="messages",
                        max_characters=str(max_characters),
                    )
                if time.monotonic() > deadline:
                    raise self._failed(f"it takes longer than {MAX_RENDER_SECONDS:g} seconds")
        return "".join(pieces)

    def _budget(self, max_characters: int) -> AbstractContextManager[None]:
        if self._bounds is None:
            return nullcontext()
        characters = BUDGET_CHARACTERS + BUDGET_PER_CHARACTER * max_characters
        return self._bounds.budget(Budget(characters, MAX_RENDER_SECONDS))

    def _generate(self, variables: Mapping[str, Any]) -> Iterator[str]:
        """Yield the text in pieces; whatever a template does wrong is the caller's error."""
        try:
            yield from self._template.generate(**variables)
        except Exception as error:
            raise self._failed(_reason(error)) from error

    def _failed(self, reason: str) -> ChatTemplateError:
        return _refused(reason, own=self._bounds is not None)


def _refused(reason: str, *, own: bool) -> ChatTemplateError:
    """Return what refuses a request: for its own template, or for messages that the model's does not take."""
    field = "chat_template" if own else "messages"
    return ChatTemplateError(f"chat template error: {reason}", field=field)


def _reason(error: BaseException) -> str:
    """Describe what went wrong in a template; the type where the text alone says little."""
    text = str(error)
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"


def _wants_parts(tree: nodes.Template) -> bool:
    """Tell whether a template walks through the parts of a message's content, and has no way with strings.

    A content is ``message.content`` or ``message['content']`` of any loop variable, or a name that one was
    assigned to.
    """
    names = {
        assignment.target.name
        for assignment in tree.find_all(nodes.Assign)
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, frozenset())
    }
    aliases = frozenset(names)
    for test in tree.find_all(nodes.Test):
        if test.name in {"string", "sequence", "iterable"} and _is_content(test.node, aliases):
            return False
    return any(_is_content(loop.iter, aliases) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, aliases: frozenset[str]) -> bool:
    if isinstance(node, (nodes.Filter, nodes.Test)):
        return node.node is not None and _is_content(node.node, aliases)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in aliases
