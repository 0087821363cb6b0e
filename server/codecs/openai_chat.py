"""Bodies of ``/v1/chat/completions``, as OpenAI and vLLM define them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headrace.server.codecs.openai_sampling import SamplingBody, Wanted
from headrace.server.codecs.openai_tgi import continues, with_tool_prompt
from headrace.server.codecs.openai_usage import StreamOptions
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.chat import Chat

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar


class ChatBody(msgspec.Struct):
    """Fields beside those of :class:`SamplingBody`, tools and structured outputs; None is absent."""

    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tool_prompt: str | None = None
    reasoning_effort: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


def chat(body: ChatBody, tools: list[dict[str, Any]] | None, variables: frozenset[str] | None = None) -> Chat:
    """Return the conversation.

    Args:
        body: the request.
        tools: those that the template may tell of.
        variables: what a template of the request may read; None for all.
    """
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    goes_on = body.continue_final_message
    if goes_on is None and body.add_generation_prompt is None:
        goes_on = continues(body.model, body.messages)
    messages = body.messages
    if tools and body.tool_prompt:
        messages = with_tool_prompt(messages, body.tool_prompt)
    return Chat(
        messages,
        tools=tools,
        template=body.chat_template or "",
        # A message that is to be continued leaves no room for the start of an answer.
        add_generation_prompt=not goes_on
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=bool(goes_on),
        documents=body.documents,
        template_kwargs=kwargs,
        add_special_tokens=bool(body.add_special_tokens),
        variables=variables,
    )


def wanted(body: ChatBody, sampling: SamplingBody, grammar: Grammar | None) -> Wanted:
    """Return what the body asks of the engine.

    Raises:
        InvalidArgumentError: the fields contradict each other.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidArgumentError(
            "when using `top_logprobs`, `logprobs` must be set to true.", field="top_logprobs"
        )
    if body.stream and sampling.prompt_logprobs is not None:
        raise InvalidArgumentError(
            "`prompt_logprobs` are not available when `stream=True`.", field="prompt_logprobs"
        )
    newer = body.max_completion_tokens is not None
    return Wanted(
        max_tokens=body.max_completion_tokens if newer else body.max_tokens,
        max_tokens_field="max_completion_tokens" if newer else "max_tokens",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logprobs_field="top_logprobs",
        grammar=grammar,
    )


def prefix(body: ChatBody) -> str:
    """Return what ``echo`` puts before an answer: the last message's text, if it is the assistant's."""
    last = body.messages[-1] if body.echo and body.messages else {}
    content = last.get("content")
    return content if isinstance(content, str) and last.get("role") == "assistant" else ""
