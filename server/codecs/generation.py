"""``headrace.v1`` generation requests to what the tasks take."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from google.protobuf.json_format import MessageToDict

from headrace.runtimes.generation.parameters import Grammar, Sampling
from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.tasks.chat import Chat
from headrace.server.tasks.generation import GenerationOptions
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.tool_calls import ToolChoice, ToolMode, ToolPlan, plan_tools
from headrace.v1 import generation_pb2

if TYPE_CHECKING:
    from headrace.server.repository.model import GenerationSettings

GenerateRequest = generation_pb2.GenerateRequest | generation_pb2.GenerateStreamRequest
Number = TypeVar("Number", int, float)

_MODES: Final[Mapping[int, ToolMode]] = MappingProxyType(
    {
        generation_pb2.TOOL_CHOICE_MODE_NONE: "none",
        generation_pb2.TOOL_CHOICE_MODE_REQUIRED: "required",
        generation_pb2.TOOL_CHOICE_MODE_FUNCTION: "named",
    }
)
"""Choices that are not the model's."""


def prompt(request: GenerateRequest) -> Prompt:
    """Read the prompt.

    Raises:
        InputEmptyError: none is set, or it is empty.
    """
    truncate = request.truncate if request.HasField("truncate") else None
    if request.WhichOneof("prompt") == "token_ids":
        return Prompt(token_ids=tuple(request.token_ids.ids), truncate=truncate)
    if not request.text:
        raise InputEmptyError("`text` or `token_ids` must be set and not empty", field="prompt")
    add = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return Prompt(request.text, add_special_tokens=add, truncate=truncate)


def options(
    given: generation_pb2.GenerationParameters,
    settings: GenerationSettings,
    request_id: str,
    bad_words: tuple[tuple[int, ...], ...] = (),
    tools: ToolPlan | None = None,
) -> GenerationOptions:
    """Build the task's options: the request's values, else the model's defaults, else neutral ones.

    Args:
        given: the parameters.
        settings: the model's.
        request_id: by which the request can be aborted.
        bad_words: ``given.bad_words`` as token ids.
        tools: how tools take part; None for not at all.

    Raises:
        InvalidArgumentError: two constraints on the text; the task checks the ranges.
    """
    defaults = settings.defaults
    n = _or(given, "n", None, 1)
    grammar = structure(given.structured_output)
    if tools is not None and tools.grammar is not None:
        if grammar is not None:
            raise InvalidArgumentError(
                "`structured_output` and a forced `tool_choice` cannot be combined", field="structured_output"
            )
        grammar = tools.grammar
    skip = given.skip_special_tokens if given.HasField("skip_special_tokens") else True
    sampling = Sampling(
        max_tokens=_or(given, "max_tokens", defaults.max_new_tokens, settings.max_tokens),
        min_tokens=given.min_tokens,
        temperature=_or(given, "temperature", defaults.temperature, 1.0),
        top_k=_or(given, "top_k", defaults.top_k, 0),
        top_p=_or(given, "top_p", defaults.top_p, 1.0),
        min_p=_or(given, "min_p", defaults.min_p, 0.0),
        typical_p=_or(given, "typical_p", defaults.typical_p, 1.0),
        repetition_penalty=_or(given, "repetition_penalty", defaults.repetition_penalty, 1.0),
        frequency_penalty=given.frequency_penalty,
        presence_penalty=given.presence_penalty,
        logit_bias=tuple(given.logit_bias.items()),
        allowed_token_ids=tuple(given.allowed_token_ids),
        bad_words=bad_words,
        stop_token_ids=tuple(given.stop_token_ids),
        ignore_eos=given.ignore_eos,
        seed=given.seed if given.HasField("seed") else None,
        n=n,
        best_of=_or(given, "best_of", None, n),
        beam=given.beam_search,
        length_penalty=_or(given, "length_penalty", None, 1.0),
        logprobs=given.logprobs if given.HasField("logprobs") else None,
        prompt_logprobs=given.prompt_logprobs if given.HasField("prompt_logprobs") else None,
        watermark=given.watermark,
        grammar=grammar,
        priority=given.priority,
        cache_salt=given.cache_salt,
        prefix_cache=given.use_prefix_cache if given.HasField("use_prefix_cache") else True,
    )
    return GenerationOptions(
        sampling,
        stop=tuple(given.stop),
        include_stop=given.include_stop,
        skip_special_tokens=skip and not (tools is not None and tools.needs_special_tokens),
        details=given.return_tokens or sampling.logprobs is not None,
        request_id=request_id,
    )


def structure(given: generation_pb2.StructuredOutput) -> Grammar | None:
    """Read what the text must be; None for anything.

    Raises:
        InvalidArgumentError: an empty constraint, or ``json_object`` that is false.
    """
    match given.WhichOneof("constraint"):
        case "json_schema":
            kind, text = "json_schema", given.json_schema
        case "json_object":
            if not given.json_object:
                raise InvalidArgumentError("`json_object` is false, expected true", field="json_object")
            return Grammar("json_object", compact=given.compact)
        case "regex":
            return Grammar("regex", _filled("regex", given.regex))
        case "choice":
            return Grammar("choice", orjson.dumps(list(_filled("choice", given.choice.values))).decode())
        case "grammar":
            return Grammar("grammar", _filled("grammar", given.grammar))
        case _:
            return None
    return Grammar("json_schema", _filled(kind, text), compact=given.compact)


def chat(
    given: generation_pb2.Conversation, settings: GenerationSettings, *, constrained: bool = False
) -> tuple[Chat, ToolPlan]:
    """Read a conversation, and how its tools take part.

    Args:
        given: the conversation.
        settings: the model's.
        constrained: the request itself says what the answer must match.

    Raises:
        InvalidArgumentError: a tool is wrong, or the chosen one or the template does not exist.
    """
    tools = [_tool(tool) for tool in given.tools]
    choice = ToolChoice(
        _MODES.get(given.tool_choice.mode, "auto"),
        given.tool_choice.function,
        parallel=not given.tool_choice.single,
    )
    if not tools and choice.mode in ("required", "named"):
        raise InvalidArgumentError("`tool_choice` needs `tools`", field="tool_choice")
    name = given.chat_template
    if name and name not in settings.chat_templates:
        known = ", ".join(settings.chat_templates) or "none"
        raise InvalidArgumentError(
            f"the model has no chat template '{name}', expected one of: {known}", field="chat_template"
        )
    conversation = Chat(
        [_message(message) for message in given.messages],
        tools=tools if tools and choice.mode != "none" else None,
        template=name,
        add_generation_prompt=not given.continue_final_message,
        continue_final_message=given.continue_final_message,
        documents=[MessageToDict(document) for document in given.documents] or None,
        template_kwargs=MessageToDict(given.template_variables),
    )
    return conversation, plan_tools(tools, choice, settings.tool_parser, constrained=constrained)


def _message(given: generation_pb2.ChatMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": given.role, "content": given.content}
    for field in ("tool_call_id", "name", "reasoning"):
        value = getattr(given, field)
        if value:
            message[field] = value
    if given.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in given.tool_calls
        ]
    return message


def _tool(given: generation_pb2.Tool) -> Mapping[str, Any]:
    function: dict[str, Any] = {"name": given.name}
    if given.description:
        function["description"] = given.description
    if given.strict:
        function["strict"] = True
    if given.parameters_json_schema:
        try:
            function["parameters"] = orjson.loads(given.parameters_json_schema)
        except orjson.JSONDecodeError as error:
            raise InvalidArgumentError(
                f"`parameters_json_schema` of '{given.name}' is not JSON: {error}", field="tools"
            ) from None
    return {"type": "function", "function": function}


def _or(
    given: generation_pb2.GenerationParameters, field: str, default: Number | None, neutral: Number
) -> Number:
    """Return a field's value, the model's default when it is unset, or the neutral value."""
    if given.HasField(field):
        value: Number = getattr(given, field)
        return value
    return neutral if default is None else default


def _filled(field: str, value: Any) -> Any:
    if not value:
        raise InvalidArgumentError(f"`{field}` is empty", field=field)
    return value
