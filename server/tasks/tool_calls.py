"""Which tools a conversation may call: how its answer is read, and what forces it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tool_formats import JSON_FORMATS, JsonCalls, NamedCall, Parsed
from headrace.server.tasks.tool_grammar import arguments_grammar, calls_grammar, function_of, strict_grammar
from headrace.server.tasks.tool_pythonic import PythonicCalls

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar
    from headrace.server.tasks.tool_formats import ToolParser

ToolMode = Literal["none", "auto", "required", "named"]
HERMES: Final = "hermes"
PYTHONIC: Final = "pythonic"
TOOL_PARSERS: Final = (*JSON_FORMATS, PYTHONIC)
"""Names that a model's ``tool_parser`` setting takes."""
BARE: Final = frozenset({PYTHONIC, *(name for name, form in JSON_FORMATS.items() if form.bare)})
"""Parsers that may take a whole answer for a call, without a sign that it is one."""
SIGNS: Final = (
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('{"name": function name, "parameters"', "llama3_json"),
    ("func_name1(", PYTHONIC),
)
"""What chat templates contain, and the format that their models write."""
OTHER_SIGNS: Final = ("<function=",)
"""Templates with these want calls in a form that none of the parsers reads."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What the caller wants of the tools.

    Attributes:
        mode: ``none`` no calls, ``auto`` as the model likes, ``required`` at least one, ``named`` this one.
        name: of the function, for ``named``.
        parallel: more than one call may be made.
    """

    mode: ToolMode = "auto"
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """How tools take part in one request.

    Attributes:
        format: a key of the parsers, or "" when the answer is not looked at.
        grammar: what the answer must match; None leaves the model free.
        name: of the function that the whole answer is the arguments of; "" for none.
        limit: most calls that are reported; None for all.
        names: of the functions that may be called.
    """

    format: str = ""
    grammar: Grammar | None = None
    name: str = ""
    limit: int | None = None
    names: tuple[str, ...] = ()

    def parser(self) -> ToolParser | None:
        """Return a parser for one sample's text; None when all of it is content."""
        if self.name:
            return NamedCall(self.name)
        if self.format == PYTHONIC:
            return PythonicCalls(self.limit)
        if not self.format:
            return None
        return JsonCalls(JSON_FORMATS[self.format], self.names, self.limit)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the signs of a call may be special tokens, so that these must stay in the text."""
        return self.format not in ("", "json")


def plan_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: ToolChoice, parser: str, *, constrained: bool = False
) -> ToolPlan:
    """Return how ``tools`` take part.

    Arguments are forced to match their schema when a call is required or named, and when a strict function
    may be called by a model that writes calls in Hermes' form. Where the answer must match something else
    already, nothing more is forced, and no answer without a sign of a call is taken for one.

    Args:
        tools: OpenAI's definitions; None or empty for none.
        choice: what the caller wants.
        parser: how the model writes calls (a key of :data:`TOOL_PARSERS`), "" when it has no way of its own.
        constrained: the request itself says what the answer must match.

    Raises:
        InvalidArgumentError: a definition is wrong, or the named function is none of them.
    """
    if not tools or choice.mode == "none":
        return ToolPlan()
    functions = [function_of(tool) for tool in tools]
    names = tuple(function["name"] for function in functions)
    limit = None if choice.parallel else 1
    if choice.mode == "required":
        grammar = calls_grammar(functions, parallel=choice.parallel)
        return ToolPlan("json", grammar, limit=limit, names=names)
    if choice.mode == "named":
        for function in functions:
            if function["name"] == choice.name:
                return ToolPlan(grammar=arguments_grammar(function), name=choice.name)
        raise InvalidArgumentError(
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
            field="tool_choice",
            value=choice.name,
        )
    if constrained:
        return ToolPlan("" if parser in BARE else parser, limit=limit, names=names)
    strict = parser == HERMES and any(function.get("strict") is True for function in functions)
    return ToolPlan(parser, strict_grammar(functions) if strict else None, limit=limit, names=names)


def parse(plan: ToolPlan, text: str) -> Parsed:
    """Read a whole answer; the same as its pieces one after the other."""
    parser = plan.parser()
    return Parsed(text) if parser is None else parser.feed(text).then(parser.finish())


def detect_tool_parser(template: str) -> str:
    """Return how models with this chat template write tool calls, "" when it does not say."""
    if any(sign in template for sign in OTHER_SIGNS):
        return ""
    return next((parser for sign, parser in SIGNS if sign in template), "")
