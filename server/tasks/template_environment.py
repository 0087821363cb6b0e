"""The environments that chat templates run in: Jinja's sandbox as Hugging Face sets it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_REPEATED: Final = 1_000_000
"""Longest text or list that ``*`` may make in a template."""
MAX_EXPONENT: Final = 64


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words, for training; here they just go through."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block and keep its content, in a scope of its own as a call block has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the names that chat templates use, and limits on what multiplies."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _dictionary
        self.globals["namespace"] = _namespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Evaluate ``*`` and ``**`` unless the result would be enormous."""
        if operator == "**":
            if isinstance(right, (int, float)) and abs(right) > MAX_EXPONENT:
                raise SecurityError(f"the exponent {right} is too large")
        else:
            for sequence, times in ((left, right), (right, left)):
                repeats = isinstance(sequence, (str, list, tuple)) and isinstance(times, int)
                if repeats and len(sequence) * times > MAX_REPEATED:
                    raise SecurityError("a repetition is too long")
        return super().call_binop(context, operator, left, right)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is, where Jinja's own filter would escape characters for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005 - local time, as templates expect


def _dictionary(*mappings: Any, **values: Any) -> dict[Any, Any]:
    """Stand for ``dict`` without giving the class itself away."""
    return dict(*mappings, **values)


class _Names(Namespace):
    """A namespace whose attributes are the template's own: none begins with an underscore."""

    def __repr__(self) -> str:
        # not what it has, which may be namespaces of namespaces: each would double the text
        return "<Namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have an attribute named {name!r}")
        super().__setitem__(name, value)


def _namespace(*mappings: Mapping[str, Any], **values: Any) -> _Names:
    names = _Names()
    for name, value in dict(*mappings, **values).items():
        names[name] = value
    return names
