"""Chat templates that come with a request end, whatever they try, and mean what they mean elsewhere."""

# ruff: noqa: E501 - templates are easier to read in one line
from __future__ import annotations

from typing import Any

import pytest
from chat_shapes import TEMPLATES

from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks import chat_templates

MESSAGES = [
    {"role": "system", "content": " be kind "},
    {"role": "user", "content": "hello 東京"},
    {"role": "assistant", "content": "the fox"},
    {"role": "user", "content": "and <b>?"},
]
VARIABLES: dict[str, Any] = {
    "messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True,
    "bos_token": "<s>", "eos_token": "</s>",
}  # fmt: skip
BIG = "{% set big = 'x' * 1000000 %}"
MANY = "{% set many = range(100000)|list %}"


def render(template: str, *, trusted: bool = False, **variables: Any) -> str:
    compiled = chat_templates.ChatTemplates().compile(template, trusted=trusted)
    return compiled.render({**VARIABLES, **variables}, 100_000)


HOSTILE = {
    "loops": "{% set ns = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set ns.n = 1 %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro m() %}{% for i in range(99999) %}{% endfor %}{% endmacro %}"
    "{% for i in range(99999) %}{% set x = m() %}{% endfor %}",
    "macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that branch": "{% macro m(n) %}{% if n %}{% set a = m(n-1) %}{% set a = m(n-1) %}{% endif %}"
    "{% endmacro %}{{ m(40) }}",
    "loop without end": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "loops that branch": "{% for i in [1, 2] recursive %}{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}"
    "{% endfor %}",
    "recursive loop over much": "{% set ns = namespace() %}{% for i in range(9999) recursive %}"
    "{% if loop.depth < 3 %}{% set ns.x = loop(range(99999)) %}{% endif %}{% endfor %}",
    "blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 40 + "x"
    + "{% endcall %}" * 40,
    "text that doubles": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "text put together": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "much put together": BIG + "{% set x = " + "big ~ " * 2000 + "big %}",
    "text in a buffer": BIG + "{% set x %}{% for i in range(99999) %}{{ big }}{% endfor %}{% endset %}",
    "constants in a buffer": "{% set x %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "lists that double": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "lists in lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "tuples in tuples": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
    "{{ ns.x }}",
    "dicts in dicts": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
    "{% endfor %}{{ ns.x|tojson }}",
    "dict() in dict()": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}"
    "{% endfor %}{{ ns.x }}",
    "views in dicts": "{% set ns = namespace(x={'a': 1}) %}{% for i in range(99) %}"
    "{% set ns.x = {'a': [ns.x.items(), ns.x.items()]} %}{% endfor %}{{ ns.x }}",
    "namespaces": "{% set ns = namespace(x=namespace()) %}{% for i in range(99) %}"
    "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{% set s = ns.x|string %}{{ raise_exception('told') }}",
    "varargs": "{% macro m() %}{% if varargs[1] < 40 %}{{ m(varargs, varargs[1] + 1, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ m(1, 1, 1) }}",
    "repeated text": "{{ 'a' * 10**9 }}",
    "repeated bytes": "{{ 'a'.encode() * 10**9 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "powers of powers": "{{ ((((2**64)**64)**64)**64)**64 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "number from text": "{% set x = ('f' * 1000000)|int(0, 16) %}{{ x // 7 }}",
    "digits of a literal": "{{ " + "9" * 5000 + " }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "lipsum": "{% set x = lipsum(n=100000000) %}",
    "cycler": "{% set x = cycler(1, 1) %}",
    "join": BIG + MANY + "{% set x = many|join(big) %}",
    "join method": BIG + "{% set x = big.join('x' * 100000) %}",
    "join method of a generator": BIG + MANY + "{% set x = big.join(many|map('string')) %}",
    "long path": MANY + "{% set x = many|sort(attribute='" + "a," * 9999 + "a') %}",
    "map default": MANY + "{% set x = many|map(attribute='a', default=many)|list %}",
    "replace": BIG + "{% set x = big.replace('x', big) %}",
    "replace nothing": BIG + "{% set x = big|replace('', big) %}",
    "center": "{% set x = 'x'.center(1000000000) %}",
    "ljust": "{% set x = 'x'.ljust(1000000000) %}",
    "zfill": "{% set x = 'x'.zfill(1000000000) %}",
    "expandtabs": "{% set x = '\\t'.expandtabs(1000000000) %}",
    "center filter": "{% set x = 'x'|center(1000000000) %}",
    "center filter block": "{% filter center(1000000000) %}x{% endfilter %}",
    "center by map": "{% set x = ['x']|map('center', 1000000000)|list %}",
    "indent": "{% set x = ('\\n' * 100000)|indent(100000) %}",
    "format width": "{% set x = '{:1000000000}'.format(1) %}",
    "format precision": "{% set x = '{:.999999999f}'.format(1.0) %}",
    "format of a format": "{% set x = '{:{}}'.format(1, 1000000000) %}",
    "format map": "{% set x = '{a:1000000000}'.format_map({'a': 1}) %}",
    "format many": BIG + "{% set x = ('{0}' * 100000).format(big) %}",
    "percent width": "{% set x = '%1000000000d' % 1 %}",
    "percent star": "{% set x = '%*d' % (1000000000, 1) %}",
    "percent named": "{% set x = '%(a)1000000000d' % {'a': 1} %}",
    "percent many": BIG + "{% set x = ('%(a)s' * 100000) % {'a': big} %}",
    "format filter": "{% set x = '%1000000000d'|format(1) %}",
    "batch": "{% set x = [1]|batch(1000000000, 0)|list %}",
    "slice": "{% set x = [1]|slice(1000000000)|list %}",
    "list": "{% for i in range(99999) %}{% set x = range(99999)|map('string')|list %}{% endfor %}",
    "length of much": MANY + "{% for i in many %}{% set x = many|reverse|list %}{% endfor %}",
    "sum of lists": "{% set x = (range(100000)|batch(1)|list)|sum(start=[]) %}",
    "round": "{{ 5|round(-1000000000, 'ceil') }}",
    "json indent": "{{ [1]|tojson(indent=1000000000) }}",
    "json separators": BIG + MANY + "{% set x = many|tojson(separators=(big, big)) %}",
    "to bytes": "{% set x = (1).to_bytes(1000000000, 'big') %}",
    "many blocks": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "include": "{% include 'x' %}",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "MAX_RENDER_SECONDS", 0.25)
    with pytest.raises(InvalidArgumentError, match="chat template error"):
        render(HOSTILE[kind])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_a_request_renders_as_the_models_own(name: str) -> None:
    def outcome(*, trusted: bool) -> str:
        messages: list[dict[str, Any]] = [*MESSAGES[1:]]  # not all know a system's
        compiled = chat_templates.ChatTemplates().compile(TEMPLATES[name], trusted=trusted)
        if compiled.wants_parts:
            messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        return compiled.render({**VARIABLES, "messages": messages}, 100_000)

    assert outcome(trusted=False) == outcome(trusted=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ loop.index }}/{{ loop.length }}{{ a }}{{ b }}{% endfor %}",
        "{% for i in nothing %}x{% else %}none{% endfor %}",
        "{% for i in [1, [2, [3]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}",
        "{% for i in range(9) if i % 2 %}{{ loop.last }}{{ i }}{% if i == 5 %}{% break %}{% endif %}{% endfor %}",
        "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 3, 4, c=5) }}",
        "{{ '%s **%05.2f**' % ('a', 1.5) }}{{ '{:>5}{a!r}'.format(1, a='b') }}{{ '%s-%s'|format(1, 2) }}",
        "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list }}",
        "{{ messages[1:][::-1]|tojson(indent=2) }}{{ (messages|last)['content'].split(' ')[-1].strip('?') }}",
        "{{ [3, 1, 2]|sort }}{{ 'a\\nb'|indent(2) }}{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1]|sum }}{{ 2.55|round(1) }}",
        "{% set x %}a{{ none }}{{ nothing }}{% endset %}{{ x }}{{ x ~ 1 }}{{ x|upper|replace('A', 'b') }}",
        "{{ [1, 2] + [3] }}{{ (1, 2) }}{{ 'ab' * 2 }}{{ 7 // 2 }}{{ 2 ** 8 }}{{ ', '.join(['a', 'b']|map('upper')) }}",
        "{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
    ],
)  # fmt: skip
def test_what_templates_use_works_as_ever(template: str) -> None:
    assert render(template) == render(template, trusted=True)


def test_long_conversations_fit() -> None:
    messages = [{"role": "user", "content": "x" * 90}] * 1000
    shape = (
        "{% for m in messages %}{{ m['content'] | trim + '' }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    )
    assert len(render(shape, messages=messages)) == 90_000
