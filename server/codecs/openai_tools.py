"""The tools of a chat or responses request: which there are, and which the caller wants called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tool_calls import ToolChoice, ToolPlan, plan_tools

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar

MAX_TOOLS: Final = 128


class ToolsBody(msgspec.Struct):
    """The fields of a request that are about tools; None is absent."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class Tools(NamedTuple):
    """How tools take part in a request.

    Attributes:
        told: definitions for the chat template; None for none.
        choice: what the caller wants.
        plan: how the answer is forced and read.
        grammar: what the answer must match: the request's own constraint, else what forces the calls.
    """

    told: list[dict[str, Any]] | None
    choice: ToolChoice
    plan: ToolPlan
    grammar: Grammar | None


def tools(body: ToolsBody, parser: str, constraint: Grammar | None) -> Tools:
    """Return how tools take part.

    Args:
        body: the fields; tools are nested as the chat API nests them.
        parser: how the model writes calls.
        constraint: what the request itself says the answer must match; None for nothing.

    Raises:
        InvalidArgumentError: the fields are wrong or contradict each other; messages are vLLM's.
    """
    if body.tools is not None and not body.tools:
        raise InvalidArgumentError(
            "`tools` must not be an empty array. Either provide at least one tool or leave the field out.",
            field="tools",
        )
    given = [_with_parameters(tool) for tool in body.tools or ()]
    if not given:
        if body.tool_choice not in (None, "none"):
            raise InvalidArgumentError("When using `tool_choice`, `tools` must be set.", field="tool_choice")
        return Tools(None, ToolChoice("none"), ToolPlan(), constraint)
    choice, names = _choice(
        body.tool_choice,
        [_name(tool) for tool in given],
        parallel=body.parallel_tool_calls is not False,
    )
    if len(given) > MAX_TOOLS:
        raise InvalidArgumentError(
            f"`tools` has {len(given)} entries, at most {MAX_TOOLS} may be", field="tools"
        )
    if constraint is not None and choice.mode in {"required", "named"}:
        raise InvalidArgumentError(
            "You can only either use constraints for structured outputs or tools, not both.",
            field="tool_choice",
        )
    told = given if names is None else _allowed(given, names)
    plan = plan_tools(told, choice, parser, constrained=constraint is not None)
    return Tools(None if choice.mode == "none" else told, choice, plan, constraint or plan.grammar)


def _with_parameters(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a definition with its schema where OpenAI has it; TGI's clients may call it ``arguments``."""
    function = tool.get("function")
    if not isinstance(function, dict) or "parameters" in function or "arguments" not in function:
        return tool
    renamed = {"parameters" if key == "arguments" else key: value for key, value in function.items()}
    return {**tool, "function": renamed}


def _choice(
    given: str | dict[str, Any] | None, known: Sequence[Any], *, parallel: bool
) -> tuple[ToolChoice, list[str] | None]:
    """Return the choice and, where it narrows the tools, the names that stay.

    TGI takes a function's bare name, and leaves out the ``type``.
    """
    match given:
        case None | "auto" | "required":
            return ToolChoice(given or "auto", parallel=parallel), None
        case "none":
            return ToolChoice("none"), None
        case {"function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return ToolChoice("named", name), None
        case str(name) if name in known:
            return ToolChoice("named", name), None
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*allowed]}} | {
            "type": "allowed_tools",
            "mode": mode,
            "tools": [*allowed],
        }:
            if mode == "auto":
                return ToolChoice("auto", parallel=parallel), _names(allowed)
            if mode == "required":
                return ToolChoice("required", parallel=parallel), _names(allowed)
    raise InvalidArgumentError(
        f'Invalid value for `tool_choice`: {given}! Only named tools, "none", "auto" or "required" '
        "are supported.",
        field="tool_choice",
    )


def _names(allowed: Sequence[Any]) -> list[str]:
    names = []
    for entry in allowed:
        match entry:
            case {"function": {"name": str(name)}} | {"name": str(name)}:
                names.append(name)
    return names


def _allowed(given: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    kept = [tool for tool in given if _name(tool) in names]
    if len(kept) < len(set(names)) or not kept:
        raise InvalidArgumentError(
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
            field="tool_choice",
        )
    return kept


def _name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None
