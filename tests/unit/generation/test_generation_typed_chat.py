"""Chats of ``headrace.v1.GenerationService`` over a scripted engine, and its tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_shapes import CHATML, QWEN
from google.protobuf.struct_pb2 import Struct
from scripted_generation import ScriptedGenerator, byte_ids, plain_tokenizer, token_id
from typed_generation import USER, WEATHER, parameters, service

from headrace.runtimes.generation.parameters import Grammar
from headrace.server.errors import (
    InputEmptyError,
    InvalidArgumentError,
)
from headrace.server.services.call import Call
from headrace.server.services.generation import GenerationService
from headrace.server.tasks.generate import Generating
from headrace.v1 import generation_pb2 as pb


def conversation(**values: Any) -> pb.Conversation:
    return pb.Conversation(**({"messages": [USER]} | values))


def chat_service(
    generating: Generating, generator: ScriptedGenerator, template: str = QWEN
) -> GenerationService:
    return service(
        generating, generator, chat_templates={"default": template}, tool_parser="hermes", max_tokens=4096
    )


def prompt_of(generator: ScriptedGenerator) -> str:
    text: str = plain_tokenizer().decode(generator.tickets[-1].prompt, skip_special_tokens=False)
    return text


async def test_a_conversation_is_answered(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator(
        [*byte_ids(" the fox"), token_id(plain_tokenizer(), "<|im_end|>")], "stop", eos=True
    )
    own = chat_service(generating, generator)
    request = pb.ChatRequest(conversation=conversation(), parameters=parameters(n=2))
    answer = await own.Chat(request, call)
    assert [(choice.index, choice.message.role, choice.message.content) for choice in answer.choices] == [
        (0, "assistant", " the fox"), (1, "assistant", " the fox"),
    ]  # fmt: skip
    assert answer.choices[0].finish == pb.Finish(reason=pb.FINISH_REASON_STOP, end_of_sequence=True)
    assert prompt_of(generator) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    stream = own.ChatStream(
        pb.ChatStreamRequest(conversation=conversation(), parameters=parameters(n=2)), call
    )
    messages = [message async for message in stream]
    for index in (0, 1):
        deltas = [message.delta for message in messages[1:-1] if message.delta.index == index]
        assert "".join(delta.content for delta in deltas) == " the fox"
        assert deltas[-1].finish == answer.choices[0].finish
    assert messages[-1].end.usage.completion_tokens == answer.usage.completion_tokens


CALLING = 'So.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Zürich"}}\n</tool_call>'


async def test_tool_calls_are_read_streamed_or_not(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator([*byte_ids(CALLING), 2], "stop", eos=True)
    own = chat_service(generating, generator)
    given = conversation(tools=[WEATHER])
    (choice,) = (await own.Chat(pb.ChatRequest(conversation=given, parameters=parameters()), call)).choices
    (made,) = choice.message.tool_calls
    assert (choice.message.content, made.name, made.arguments) == ("So.", "weather", '{"place": "Zürich"}')
    assert choice.finish.reason == pb.FINISH_REASON_TOOL_CALLS
    assert made.id.startswith("call_")
    assert '<tools>\n{"type": "function", "function": {"name": "weather", "description": "d"' in prompt_of(
        generator
    )

    stream = own.ChatStream(pb.ChatStreamRequest(conversation=given, parameters=parameters()), call)
    deltas = [message.delta async for message in stream if message.WhichOneof("event") == "delta"]
    assert "".join(delta.content for delta in deltas) == "So."
    calls = [made for delta in deltas for made in delta.tool_calls]
    assert [(bool(made.id), made.name) for made in calls if made.name or made.id] == [(True, "weather")]
    assert "".join(made.arguments for made in calls) == '{"place": "Zürich"}'
    assert deltas[-1].finish.reason == pb.FINISH_REASON_TOOL_CALLS


async def test_forced_calls(generating: Generating, call: Call) -> None:
    for mode, text in [
        (pb.TOOL_CHOICE_MODE_REQUIRED, '[{"name": "weather", "arguments": {"a": 1}}]'),
        (pb.TOOL_CHOICE_MODE_FUNCTION, '{"a": 1}'),
    ]:
        generator = ScriptedGenerator(byte_ids(text), "stop")
        choice = pb.ToolChoice(mode=mode, function="weather", single=True)
        given = conversation(tools=[WEATHER], tool_choice=choice)
        request = pb.ChatRequest(conversation=given, parameters=parameters())
        answer = await chat_service(generating, generator).Chat(request, call)
        message = answer.choices[0].message
        assert (message.content, message.tool_calls[0].name) == ("", "weather")
        assert json.loads(message.tool_calls[0].arguments) == {"a": 1}
        grammar = generator.tickets[0].sampling.grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        request.parameters.structured_output.regex = "a"
        with pytest.raises(InvalidArgumentError, match="cannot be combined"):
            await chat_service(generating, generator).Chat(request, call)


async def test_structured_output_beside_a_strict_function(generating: Generating, call: Call) -> None:
    """The function need not be called, so the output's own constraint rules."""
    generator = ScriptedGenerator(byte_ids("aa"), "stop")
    strict = pb.Tool(name="weather", strict=True)
    given = parameters(structured_output={"regex": "a+"})
    request = pb.ChatRequest(conversation=conversation(tools=[strict]), parameters=given)
    answer = await chat_service(generating, generator).Chat(request, call)
    assert answer.choices[0].message.content == "aa"
    assert generator.tickets[0].sampling.grammar == Grammar("regex", "a+")


async def test_all_of_a_conversation_reaches_the_template(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator([5])
    variables, document = Struct(), Struct()
    variables.update({"add": "x"})
    document.update({"title": "T"})
    called = pb.ChatMessage(
        role="assistant",
        tool_calls=[pb.ToolCall(id="1", name="weather", arguments='{"a": 1}')],
        reasoning="hm",
    )
    given = conversation(
        messages=[USER, called, pb.ChatMessage(role="tool", content="sun", tool_call_id="1"), USER],
        tools=[WEATHER],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE),
        template_variables=variables,
        documents=[document],
    )
    own = chat_service(generating, generator, QWEN + "{{ add }}{{ messages[1].reasoning }}")
    await own.Chat(pb.ChatRequest(conversation=given), call)
    text = prompt_of(generator)
    assert "<tools>" not in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"a": 1}}' in text
    assert "<tool_response>\nsun" in text
    assert text.endswith("T<|im_start|>assistant\nxhm")
    going = conversation(
        messages=[USER, pb.ChatMessage(role="assistant", content="the")], continue_final_message=True
    )
    await chat_service(generating, generator, CHATML).Chat(pb.ChatRequest(conversation=going), call)
    assert prompt_of(generator).endswith("assistant\nthe")


async def test_tokens_and_back(generating: Generating, call: Call) -> None:
    own = chat_service(generating, ScriptedGenerator())
    answer = await own.Tokenize(pb.TokenizeRequest(text="hello 東京", return_tokens=True), call)
    assert list(answer.token_ids) == byte_ids("hello 東京")
    assert b"".join(token.raw for token in answer.tokens) == "hello 東京".encode()
    assert (answer.text, answer.max_tokens, answer.model) == ("hello 東京", 4096, "llm")
    back = await own.Detokenize(pb.DetokenizeRequest(token_ids=answer.token_ids), call)
    assert back.text == "hello 東京"
    chat = await own.Tokenize(pb.TokenizeRequest(conversation=conversation()), call)
    assert chat.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    skipped = pb.DetokenizeRequest(token_ids=chat.token_ids, skip_special_tokens=True)
    assert (await own.Detokenize(skipped, call)).text == "user\nhello\nassistant\n"
    for wrong in (pb.TokenizeRequest(text=""), pb.TokenizeRequest()):
        with pytest.raises(InputEmptyError):
            await own.Tokenize(wrong, call)
    with pytest.raises(InvalidArgumentError, match="out of vocabulary"):
        await own.Detokenize(pb.DetokenizeRequest(token_ids=[512]), call)


@pytest.mark.parametrize(
    "given",
    [
        conversation(chat_template="none"),
        conversation(tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)),
        conversation(tools=[pb.Tool(name="f", parameters_json_schema="{")]),
        conversation(tools=[pb.Tool()]),
        pb.Conversation(),
    ],
)
async def test_wrong_conversations(generating: Generating, call: Call, given: pb.Conversation) -> None:
    with pytest.raises(InvalidArgumentError):
        await chat_service(generating, ScriptedGenerator()).Chat(pb.ChatRequest(conversation=given), call)
