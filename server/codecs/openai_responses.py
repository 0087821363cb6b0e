"""Bodies of ``/v1/responses``: the part of the Responses API that needs no stored state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headrace.server.codecs.openai_sampling import SamplingBody, Wanted
from headrace.server.codecs.openai_structured import (
    ResponseFormat,
    StructureBody,
    StructuredOutputs,
)
from headrace.server.codecs.openai_tools import ToolsBody
from headrace.server.errors import InvalidArgumentError, ModelNotFoundError, UnsupportedError
from headrace.server.tasks.chat import Chat

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar

LOGPROBS: str = "message.output_text.logprobs"


class TextConfig(msgspec.Struct):
    """The ``text`` member."""

    format: ResponseFormat | None = None
    verbosity: str | None = None


class ResponsesBody(msgspec.Struct):
    """Fields beside those of :class:`SamplingBody`; None is absent."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    store: bool | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    service_tier: str | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def with_logprobs(self) -> bool:
        """Whether the answer's tokens are reported."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


def check(body: ResponsesBody) -> None:
    """Refuse what needs stored state.

    Raises:
        ModelNotFoundError: an earlier response is referred to: none is kept.
        UnsupportedError: the answer is wanted later.
    """
    if body.previous_response_id is not None:
        raise ModelNotFoundError(
            f"Response with id '{body.previous_response_id}' not found: responses are not stored, send the "
            "whole conversation as `input`",
            field="previous_response_id",
        )
    if body.conversation is not None:
        raise ModelNotFoundError("conversations are not stored", field="conversation")
    if body.background:
        raise UnsupportedError("`background` is not supported: responses are not stored", field="background")
    if body.truncation not in {None, "auto", "disabled"}:
        raise InvalidArgumentError(
            f"`truncation` is '{body.truncation}', expected 'auto' or 'disabled'", field="truncation"
        )


def tools(body: ResponsesBody) -> ToolsBody:
    """Return the tools as the chat API writes them; no tools and an empty list are the same here.

    Raises:
        InvalidArgumentError: a tool that is run by OpenAI's own servers.
    """
    nested: list[dict[str, Any]] = []
    for tool in body.tools or ():
        if tool.get("type") != "function":
            raise InvalidArgumentError(
                f"`tools` has type '{tool.get('type')}', only 'function' is supported", field="tools"
            )
        inner = {key: tool[key] for key in ("name", "description", "parameters", "strict") if key in tool}
        nested.append({"type": "function", "function": inner})
    choice = body.tool_choice if nested or body.tool_choice not in ("auto", "none") else None
    return ToolsBody(nested or None, choice, body.parallel_tool_calls)


def structure(body: ResponsesBody) -> StructureBody:
    """Return what the output must match."""
    form = body.text.format if body.text is not None else None
    return StructureBody(response_format=form, structured_outputs=body.structured_outputs)


def wanted(body: ResponsesBody, grammar: Grammar | None) -> Wanted:
    """Return what the body asks of the engine."""
    return Wanted(
        max_tokens=body.max_output_tokens,
        max_tokens_field="max_output_tokens",
        logprobs=(body.top_logprobs or 0) if body.with_logprobs else None,
        logprobs_field="top_logprobs",
        grammar=grammar,
    )


def only_sample(sampling: SamplingBody) -> SamplingBody:
    """Return the sampling fields without those that the Responses API does not know."""
    sampling.n = None
    sampling.prompt_logprobs = None
    return sampling


def chat(body: ResponsesBody, told: list[dict[str, Any]] | None) -> Chat:
    """Return the conversation.

    Raises:
        InvalidArgumentError: an item that is neither a message nor a function's call or output.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        for index, item in enumerate(body.input):
            _add(messages, index, item)
    kwargs = dict(body.chat_template_kwargs or {})
    effort = (body.reasoning or {}).get("effort")
    if effort is not None:
        kwargs.setdefault("reasoning_effort", effort)
    return Chat(messages, tools=told, template_kwargs=kwargs)


def _add(messages: list[dict[str, Any]], index: int, item: dict[str, Any]) -> None:
    """Add an input item; calls that follow one another belong to one message of the assistant."""
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            last = {"role": "assistant", "content": None}
            messages.append(last)
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        last["tool_calls"] = [*last.get("tool_calls", ()), call]
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # what a model thought before is not shown to it again
        raise InvalidArgumentError(
            f"`input[{index}]` has type '{kind}', which is not supported", field="input"
        )
