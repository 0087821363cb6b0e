"""Conversations become the prompts that transformers makes of them; templates cannot do harm."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from chat_shapes import CHATML, LLAMA3, MISTRAL, PARTS, QWEN, TEMPLATES
from scripted_generation import ScriptedGenerator, byte_tokenizer, scripted_model, token_id
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from headrace.server.errors import InputEmptyError, InputTooLongError, InvalidArgumentError
from headrace.server.repository.model import Model
from headrace.server.tasks import chat_templates
from headrace.server.tasks.chat import Chat, chat_prompt
from headrace.server.tasks.generate import Generating

USER = {"role": "user", "content": 'hello <b>"fox"</b> & 東京 '}
ANSWER = {"role": "assistant", "content": " says the fox "}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter für <Ort>",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


@cache
def tokenizer() -> Tokenizer:
    own = byte_tokenizer()
    start = token_id(own, "<s>")
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return own


def reference(template: str) -> Any:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer(), chat_template=template, bos_token="<s>", eos_token="<|im_end|>"
    )


def model(template: str | dict[str, str] = "") -> Model:
    templates = {"default": template} if isinstance(template, str) else template
    return scripted_model(ScriptedGenerator(), tokenizer(), chat_templates=templates, max_tokens=2048)


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "turns": [USER, ANSWER, USER],
    "system": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("name", TEMPLATES)
async def test_prompts_equal_those_of_transformers(
    generating: Generating, name: str, messages: list[dict[str, Any]]
) -> None:
    own = reference(TEMPLATES[name])
    for generation in (True, False):
        chat = Chat(messages, add_generation_prompt=generation)
        if name == "gemma" and messages[0]["role"] == "system":
            with pytest.raises(InvalidArgumentError, match="no system role"):
                await chat_prompt(generating, model(TEMPLATES[name]), chat)
            continue
        prompt = await chat_prompt(generating, model(TEMPLATES[name]), chat)
        text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        ids = own.apply_chat_template(messages, add_generation_prompt=generation)["input_ids"]
        assert (prompt.text, list(prompt.token_ids or ())) == (text, ids)


@pytest.mark.parametrize("name", ["qwen", "llama3"])
async def test_tools_and_their_results(generating: Generating, name: str) -> None:
    messages = [USER, {**CALL, "content": ""}, RESULT]
    text = reference(TEMPLATES[name]).apply_chat_template(
        messages, tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
    written = {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "function": {
        "name": "weather", "arguments": '{"place": "Zürich"}'}}]}  # fmt: skip
    for call in (CALL, written):  # arguments as an object and as JSON text
        prompt = await chat_prompt(generating, model(TEMPLATES[name]), Chat([USER, call, RESULT], [TOOL]))
        assert prompt.text == text
    assert isinstance(written["tool_calls"][0]["function"]["arguments"], str)  # the caller's own stays


async def test_documents_reasoning_and_variables(generating: Generating) -> None:
    messages = [USER, {**ANSWER, "reasoning": "hm"}, USER]
    documents = [{"title": "T", "text": "x"}]
    text = reference(QWEN).apply_chat_template(messages, documents=documents, tokenize=False)
    chat = Chat(messages, documents=documents, add_generation_prompt=False)
    assert (await chat_prompt(generating, model(QWEN), chat)).text == text
    assert "<think>hm</think>" in text
    text = reference(LLAMA3).apply_chat_template([USER], date_string="today", tokenize=False)
    chat = Chat([USER], template_kwargs={"date_string": "today"}, add_generation_prompt=False)
    assert (await chat_prompt(generating, model(LLAMA3), chat)).text == text


@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma", "qwen"])
@pytest.mark.parametrize("content", ["the fox", "the fox says "])
async def test_a_final_message_is_continued(generating: Generating, name: str, content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    text = reference(TEMPLATES[name]).apply_chat_template(
        messages, tokenize=False, continue_final_message=True
    )
    chat = Chat(messages, add_generation_prompt=False, continue_final_message=True)
    assert (await chat_prompt(generating, model(TEMPLATES[name]), chat)).text == text


async def test_contents_take_the_form_that_the_template_reads(generating: Generating) -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"],
    }
    joined = await chat_prompt(generating, model(CHATML), Chat([parts]))
    assert "user\na\nb\nc<" in joined.text
    walked = await chat_prompt(generating, model(PARTS), Chat([parts, {"role": "user", "content": "d"}]))
    assert walked.text == (
        "<|im_start|>user\nabc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n"
    )
    chat = Chat([parts], add_generation_prompt=False, continue_final_message=True)
    assert (await chat_prompt(generating, model(PARTS), chat)).text == "<|im_start|>user\nabc"


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (PARTS, True),
        (CHATML, False),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c %}x{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m.content if p.text %}x{% endfor %}{% endfor %}", True),
        ("{% for m in messages if m.content is string %}{% endfor %}" + PARTS, False),
    ],
)
def test_the_form_of_contents_is_found_in_the_template(template: str, *, parts: bool) -> None:
    assert chat_templates.ChatTemplates().compile(template, trusted=True).wants_parts is parts


async def test_no_beginning_of_sequence_is_doubled(generating: Generating) -> None:
    start = token_id(tokenizer(), "<s>")
    for template, add, count in [
        (MISTRAL, False, 1),
        (MISTRAL, True, 1),
        (CHATML, False, 0),
        (CHATML, True, 1),
    ]:
        chat = Chat([USER], add_special_tokens=add)
        prompt = await chat_prompt(generating, model(template), chat)
        assert list(prompt.token_ids or ()).count(start) == count


async def test_which_template_is_used(generating: Generating) -> None:
    templates = {"default": "own {{ tools }}", "tool_use": "with tools", "rag": "for rag"}
    for chat, text in [
        (Chat([USER]), "own None"),
        (Chat([USER], [TOOL]), "with tools"),
        (Chat([USER], [TOOL], template="rag"), "for rag"),
        (Chat([USER], template="given {{ messages[0].role }}"), "given user"),
    ]:
        assert (await chat_prompt(generating, model(templates), chat)).text == text
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        await chat_prompt(generating, model({}), Chat([USER]))


async def test_developers_are_the_system_where_the_template_does_not_know_them(
    generating: Generating,
) -> None:
    said = [{"role": "developer", "content": "x"}, USER]
    assert "system\nx<" in (await chat_prompt(generating, model(CHATML), Chat(said))).text
    knowing = CHATML + "{# developer #}"
    assert "developer\nx<" in (await chat_prompt(generating, model(knowing), Chat(said))).text


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"content": "x"}], "`messages\\[0\\]` has no `role`"),
        ([USER, {"role": "user", "content": 5}], "`messages\\[1\\]` has a `content`"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'.* text only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "without text"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "`type` is not a string"),
        ([{"role": "user", "content": [7]}], "not an object"),
        ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not JSON"),
        ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}], "not a JSON object"),
        ([{**CALL, "tool_calls": [{"function": {}}]}], "without a function name"),
        ([{**CALL, "tool_calls": "x"}], "not a list"),
        (["x"], "not an object"),
    ],
)
async def test_wrong_messages(generating: Generating, messages: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text) as failure:
        await chat_prompt(generating, model(QWEN), Chat(messages))
    assert failure.value.metadata["field"] == "messages"


async def test_wrong_requests(generating: Generating) -> None:
    with pytest.raises(InputEmptyError):
        await chat_prompt(generating, model(QWEN), Chat([]))
    with pytest.raises(InvalidArgumentError, match="Cannot set both"):
        await chat_prompt(generating, model(QWEN), Chat([USER], continue_final_message=True))
    with pytest.raises(InvalidArgumentError, match="cannot set messages"):
        await chat_prompt(generating, model(QWEN), Chat([USER], template_kwargs={"messages": []}))
    silent = Chat([USER], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidArgumentError, match="leaves out its text"):
        await chat_prompt(generating, model("nothing"), silent)
    with pytest.raises(InputTooLongError):
        await chat_prompt(generating, model(CHATML), Chat([{"role": "user", "content": "x" * 600_000}]))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__.json }}",
        "{{ 'x' * 100000000 }}",
        "{{ [1] * 100000000 }}",
        "{{ 9 ** 9999999 }}",
        "{{ undefined.attribute }}",
        "{{ 1 / 0 }}",
        "{% for i in range(100001) %}{% endfor %}",
        "x" * (chat_templates.MAX_TEMPLATE_CHARACTERS + 1),
        "{{ messages[0].content + 5 }}",
    ],
)  # fmt: skip
async def test_templates_that_fail_or_do_harm_are_the_callers_error(
    generating: Generating, template: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="chat template error"):
        await chat_prompt(generating, model(CHATML), Chat([USER], template=template))


async def test_templates_have_little_time(generating: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "MAX_RENDER_SECONDS", 0.05)
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidArgumentError, match="longer than"):
        await chat_prompt(generating, model(CHATML), Chat([USER], template=slow))


def test_compiled_templates_are_kept_but_not_all() -> None:
    templates = chat_templates.ChatTemplates()
    first = templates.compile("a", trusted=True)
    assert templates.compile("a", trusted=True) is first
    for number in range(chat_templates.MAX_TEMPLATES):
        templates.compile(f"b{number}", trusted=True)
    assert templates.compile("a", trusted=True) is not first
