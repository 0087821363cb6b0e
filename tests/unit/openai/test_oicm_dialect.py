"""OICM's way of writing chats over a scripted engine: prompts, defaults, templates and their errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.server.repository.model import SamplingDefaults

OICM = {"x-headrace-surface": "oicm"}
ASKED = [{"role": "user", "content": "Hi"}]
OPEN = [*ASKED, {"role": "assistant", "content": ""}]
TEMPLATED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def chat(api: Any, headers: Any = OICM, **fields: Any) -> Any:
    return await api.post("CreateChatCompletion", fields, headers=headers)


def settled(api: Any, **settings: Any) -> None:
    api.repository.add(replace(api.model, generation=replace(api.model.generation, **settings)))


async def prompt(api: Any, **fields: Any) -> str:
    reply = await chat(api, **fields)
    assert reply.status == 200, reply.body
    assert reply.json["object"] == "chat.completion"
    text: str = api.engine.prompt
    return text


async def test_inputs_are_a_message_of_the_user(api: Any) -> None:
    assert await prompt(api, inputs="Hi", max_new_tokens=7) == TEMPLATED
    assert api.engine.sampling.max_tokens == 7
    assert (await chat(api, {}, inputs="Hi", max_new_tokens=7)).status == 200  # on every surface
    assert (api.engine.prompt, api.engine.sampling.max_tokens) == (TEMPLATED, 7)
    assert (await chat(api, inputs="Hi", stream=True)).events[0]["choices"][0]["delta"]["content"] == ""


async def test_inputs_of_a_model_without_a_template_are_the_prompt(api: Any) -> None:
    settled(api, chat_templates={})
    assert await prompt(api, inputs="Hi") == "Hi"
    own = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    assert await prompt(api, inputs="Hi", chat_template=own) == "[Hi]"
    assert (await chat(api, messages=ASKED)).status == 400


async def test_messages_go_before_inputs(api: Any) -> None:
    assert await prompt(api, inputs="No", messages=ASKED) == TEMPLATED
    assert await prompt(api, inputs="Hi", messages=None) == TEMPLATED
    assert (await chat(api, inputs="No", messages=[])).status == 400


async def test_messages_as_a_text_are_the_prompt(api: Any) -> None:
    assert await prompt(api, messages="once upon a time, ") == "once upon a time, "
    assert await prompt(api, messages="x", chat_template="{{ messages }}") == "x"
    assert (await chat(api, {}, messages="x")).status == 400  # OpenAI's API knows no such thing
    assert (await chat(api, messages="")).json["error"]["param"] == "prompt"


async def test_an_empty_last_message_of_the_assistant_is_where_the_answer_begins(api: Any) -> None:
    nothing: Any = ("", None, [])
    for content in nothing:
        assert await prompt(api, messages=[*ASKED, {"role": "assistant", "content": content}]) == TEMPLATED
    named = "{% for message in messages %}{{ message.role }} {% endfor %}"
    assert await prompt(api, messages=OPEN, chat_template=named) == "user assistant "
    goes_on = await prompt(api, messages=OPEN, continue_final_message=True)
    assert goes_on == TEMPLATED
    await chat(api, {}, messages=OPEN)  # elsewhere it is a message as any other
    assert api.engine.prompt == TEMPLATED + "<|im_end|>\n<|im_start|>assistant\n"
    assert (await chat(api, messages=OPEN[1:])).status == 200  # nothing else to answer


@pytest.mark.parametrize(("fields", "temperature", "top_p"), [
    ({}, 0.7, 0.9),
    ({"temperature": None, "top_p": None}, 0.7, 0.9),
    ({"temperature": 0.2, "top_p": 0.5}, 0.2, 0.5),
    ({"do_sample": False}, 0.0, 0.9),
    ({"do_sample": False, "temperature": 1.5}, 0.0, 0.9),
    ({"do_sample": True}, 0.7, 0.9),
    ({"do_sample": None, "temperature": 0}, 0.0, 0.9),
    ({"temperature": 2}, 2.0, 0.9),
])  # fmt: skip
async def test_temperature_and_top_p(api: Any, fields: Any, temperature: float, top_p: float) -> None:
    for body in ({"messages": ASKED}, {"inputs": "Hi"}):
        assert (await chat(api, **body, **fields)).status == 200
        assert (api.engine.sampling.temperature, api.engine.sampling.top_p) == (temperature, top_p)


async def test_other_routes_and_surfaces_have_their_defaults(api: Any) -> None:
    settled(api, defaults=SamplingDefaults(temperature=0.3, top_p=0.4))
    await chat(api, {}, messages=ASKED, do_sample=False)  # unknown to OpenAI's API
    assert (api.engine.sampling.temperature, api.engine.sampling.top_p) == (0.3, 0.4)
    await chat(api, {}, inputs="Hi")
    assert (api.engine.sampling.temperature, api.engine.sampling.top_p) == (0.3, 0.4)
    await api.post("CreateCompletion", {"prompt": "Hi"}, headers=OICM)
    assert (api.engine.sampling.temperature, api.engine.sampling.top_p) == (0.7, 0.9)


async def test_names_that_openai_writes_otherwise(api: Any) -> None:
    await chat(api, inputs="Hi", max_new_tokens=9, max_tokens=3)
    assert api.engine.sampling.max_tokens == 3
    await chat(api, messages=ASKED, max_new_tokens=9, max_completion_tokens=None)
    assert api.engine.sampling.max_tokens == 9
    await chat(api, {}, messages=ASKED, max_new_tokens=9)
    assert api.engine.sampling.max_tokens > 9
    await chat(api, inputs="Hi", truncate=4, watermark=True)
    assert len(api.engine.tickets[-1].prompt) == 4
    assert api.engine.sampling.watermark


@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"inputs": ["a", "b"]}, "inputs", "expected `str`"),
    ({"inputs": 5}, "inputs", "expected `str`"),
    ({}, "messages", "`messages` is missing"),
    ({"messages": 5}, "messages", "expected"),
    ({"inputs": "Hi", "do_sample": "maybe"}, "do_sample", "expected `bool`"),
    ({"inputs": "Hi", "max_new_tokens": 0}, "max_tokens", "at least 1"),
    ({"inputs": "Hi", "max_new_tokens": "many"}, "max_tokens", "expected `int"),
    ({"inputs": "Hi", "temperature": 2.1}, "temperature", "temperature must be in [0, 2], got 2.1."),
    ({"inputs": "Hi", "temperature": -1}, "temperature", "temperature must be in [0, 2]"),
    ({"inputs": "Hi", "top_p": 1.1}, "top_p", "`top_p` is 1.1"),
])  # fmt: skip
async def test_bad_requests(api: Any, fields: Any, param: str, words: str) -> None:
    reply = await chat(api, **fields)
    assert reply.status == 400, reply.body
    error = reply.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, param)
    assert words in error["message"]


@pytest.mark.parametrize(("template", "text"), [
    ("{{ messages[0].content }}", "Hi"),
    ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{% for m in messages %}{% continue %}{% endfor %}-", "-"),
    ("{{ strftime_now('%%') }}", "%"),
    ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ messages[0]['role'].upper() }}", "2USER"),
    ("{% if messages[1:] %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", "2"),
    ("{% macro say(m) %}<{{ m.content }}>{% endmacro %}{{ say(messages[-1]) }}", "<Hi>"),
])  # fmt: skip
async def test_templates_of_a_request(api: Any, template: str, text: str) -> None:
    assert await prompt(api, messages=ASKED, chat_template=template) == text


@pytest.mark.parametrize(("template", "words"), [
    ("{% if %}", "should be valid Jinja"),
    ("{{ messages", "should be valid Jinja"),
    ("{{ messages | nothing }}", "should be valid Jinja"),
    ("x" * (256 * 1024 + 1), "at most 262144"),
    ("{{ question }}", "it may use messages only, but it uses question"),
    ("{% if x is defined %}{{ x }}{% endif %}", "but it uses x"),
    ("{{ bos_token }}{{ tools }}{{ messages[0].content }}", "but it uses bos_token, tools"),
    ("{{ raise_exception('not so') }}", "not so"),
    ("{{ messages[5].content }}", "list object has no element 5"),
    ("{{ messages.__class__.__mro__ }}", "chat template error"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "its loops"),
])  # fmt: skip
async def test_templates_that_cannot_be_used(api: Any, template: str, words: str) -> None:
    reply = await chat(api, messages=ASKED, chat_template=template)
    assert reply.status == 422, reply.body
    error = reply.json["error"]
    assert (error["type"], error["code"]) == ("UnprocessableEntityError", 422)
    assert error["param"] == "chat_template"
    assert words in error["message"]
    assert api.engine.active == 0


async def test_other_variables_are_for_other_surfaces(api: Any) -> None:
    body = {"messages": ASKED, "chat_template": "{{ eos_token }}{{ mood }}"}
    assert (await chat(api, **body)).status == 422
    assert (await chat(api, **body, chat_template_kwargs={"mood": "x"})).status == 422
    assert (await chat(api, {}, **body, chat_template_kwargs={"mood": "x"})).status == 200
    assert api.engine.prompt == "<|im_end|>x"
    mood = await prompt(api, messages=ASKED, chat_template="{{ mood }}", chat_template_kwargs={"mood": "x"})
    assert mood == "x"
    assert (await chat(api, {}, messages=ASKED, chat_template="{% if %}")).status == 400  # vLLM's status
    assert await prompt(api, messages=ASKED) == TEMPLATED  # the model's own may use all
