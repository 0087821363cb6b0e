"""Every parameter of Text Generation Inference: what is legal, what is refused and in which words.

Rows T31 to T49 of the feature list; the texts are TGI 3.3's, as its clients' tests have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tgi_facade import CONTEXT, Facade

from headrace.server.codecs.families import FAMILIES
from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.errors import InvalidArgumentError, RequestRefusedError
from headrace.server.tasks.tokenization import Tokenizing

PREFIX = "Input validation error: "
LONGEST = CONTEXT - 1


@pytest.fixture
def tgi() -> Iterator[Facade]:
    tokenizing = Tokenizing(1)
    yield Facade(tokenizing)
    tokenizing.close()


LEGAL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("T31", {"best_of": 1}, {"n": 1, "temperature": 0.0}),
    ("T31", {"best_of": 2, "temperature": 1.0}, {"n": 1, "temperature": 1.0, "logprobs": 0}),
    ("T32", {"decoder_input_details": True}, {"prompt_logprobs": 0}),
    ("T32", {"decoder_input_details": False}, {"prompt_logprobs": None}),
    ("T33", {"details": True}, {"logprobs": 0}),
    ("T33", {"details": False}, {"logprobs": None}),
    ("T34", {"do_sample": True}, {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}),
    ("T34", {"do_sample": False}, {"temperature": 0.0, "seed": None}),
    ("T34", {"do_sample": False, "temperature": 1.0}, {"temperature": 0.0}),
    ("T34", {"do_sample": False, "temperature": 0.5}, {"temperature": 0.5}),
    ("T34", {"do_sample": False, "top_k": 3}, {"temperature": 1.0, "top_k": 3}),
    ("T34", {"top_p": 1.0, "typical_p": 1.0}, {"temperature": 0.0}),
    ("T35", {"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ("T35", {"repetition_penalty": 1e-6}, {"repetition_penalty": 1e-6}),
    ("T36", {"frequency_penalty": -2.0}, {"frequency_penalty": -2.0}),
    ("T36", {"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
    ("T38", {"seed": 0, "do_sample": True}, {"seed": 0}),
    ("T38", {"seed": 2**64 - 1, "do_sample": True}, {"seed": 2**64 - 1}),
    ("T39", {"temperature": 0.5}, {"temperature": 0.5}),
    ("T39", {"temperature": 1e-9}, {"temperature": 0.01}),
    ("T39", {"temperature": 1000.0}, {"temperature": 1000.0}),
    ("T40", {"top_k": 1}, {"top_k": 1}),
    ("T40", {"top_k": 2**31 - 1}, {"top_k": 2**31 - 1}),
    ("T41", {"top_p": 0.95}, {"top_p": 0.95, "temperature": 1.0}),
    ("T41", {"top_p": 1e-6}, {"top_p": 1e-6}),
    ("T41", {"top_p": 1.0, "do_sample": True}, {"top_p": 1.0}),
    ("T42", {"typical_p": 0.95}, {"typical_p": 0.95, "temperature": 1.0}),
    ("T42", {"typical_p": 1.0, "do_sample": True}, {"typical_p": 1.0}),
    ("T44", {"max_new_tokens": 1}, {"max_tokens": 1}),
    ("T46", {"watermark": True}, {"watermark": True}),
    ("T46", {"watermark": False}, {"watermark": False}),
    ("T47", {"top_n_tokens": 5, "details": True}, {"logprobs": 5}),
    ("T47", {"top_n_tokens": 0, "details": True}, {"logprobs": 0}),
    ("T49", {"adapter_id": ""}, {"adapter": ""}),
]


@pytest.mark.parametrize(("row", "given", "expected"), LEGAL)
async def test_legal_values(tgi: Facade, row: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    reply = await tgi.generate(**given)
    assert reply.status == 200, reply.body
    found = {name: getattr(tgi.sampling, name) for name in expected}
    assert found == expected, row


ILLEGAL: list[tuple[str, dict[str, Any], str]] = [
    ("T31", {"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
    ("T31", {"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ("T31", {"best_of": -1}, "`best_of` must be > 0 and <= 2. Given: -1"),
    ("T31", {"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ("T31", {"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ("T35", {"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ("T35", {"repetition_penalty": -1e30}, "`repetition_penalty` must be strictly positive"),
    ("T36", {"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("T36", {"frequency_penalty": -1e30}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("T38", {"seed": -1}, "`seed` must be >= 0. Given: -1"),
    ("T38", {"seed": -(2**63)}, f"`seed` must be >= 0. Given: {-(2**63)}"),
    ("T39", {"temperature": 0}, "`temperature` must be strictly positive"),
    ("T39", {"temperature": -1e30}, "`temperature` must be strictly positive"),
    ("T40", {"top_k": 0}, "`top_k` must be strictly positive"),
    ("T40", {"top_k": -(2**31)}, "`top_k` must be strictly positive"),
    ("T41", {"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
    ("T41", {"top_p": 1.0001}, "`top_p` must be > 0.0 and < 1.0"),
    ("T41", {"top_p": -1e30}, "`top_p` must be > 0.0 and < 1.0"),
    ("T42", {"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ("T42", {"typical_p": 1e30}, "`typical_p` must be > 0.0 and < 1.0"),
    ("T43", {"truncate": 0}, f"`truncate` must be strictly positive and less than {LONGEST}. Given: 0"),
    ("T43", {"truncate": 64}, f"`truncate` must be strictly positive and less than {LONGEST}. Given: 64"),
    ("T43", {"truncate": -5}, f"`truncate` must be strictly positive and less than {LONGEST}. Given: -5"),
    ("T44", {"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ("T44", {"max_new_tokens": -1}, "`max_new_tokens` must be strictly positive"),
    (
        "T44",
        {"max_new_tokens": CONTEXT},
        "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 2 `inputs` tokens and 64 `max_new_tokens`",
    ),
    (
        "T44",
        {"max_new_tokens": 2**32 - 1},
        (
            "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 2 `inputs` tokens and 4294967295 "
            "`max_new_tokens`"
        ),
    ),
    ("T45", {"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ("T45", {"stop": [""]}, "stop cannot contain an empty string."),
    ("T47", {"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ("T47", {"top_n_tokens": -1}, "`top_n_tokens` must be >= 0 and <= 5. Given: -1"),
    ("T48", {"grammar": {"type": "json", "value": "{"}}, "grammar is not valid: "),
    ("T48", {"grammar": {"type": "json", "value": 5}}, "grammar is not supported"),
    ("T48", {"grammar": {"type": "json", "value": [1]}}, "grammar is not supported"),
    (
        "T48",
        {"grammar": {"type": "json", "value": {}}},
        "grammar is not valid: Grammar must have a 'properties' field",
    ),
    ("T49", {"adapter_id": "mine"}, "the model has no adapter 'mine'"),
]


@pytest.mark.parametrize("route", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(("row", "given", "text"), ILLEGAL)
async def test_illegal_values(tgi: Facade, route: str, row: str, given: dict[str, Any], text: str) -> None:
    if route == "GenerateStream" and "best_of" in given:
        text = "`best_of` != 1 is not supported when streaming tokens"
    status, found, kind = (await tgi.post(route, {"inputs": "hi", "parameters": given})).error
    assert (status, kind) == (422, "validation"), row
    assert found.startswith(PREFIX + text)
    if not text.endswith(": "):
        assert found == PREFIX + text
    assert not [ticket for ticket in tgi.engine.tickets if not ticket.closed]


SHAPES: list[tuple[str, Any, str]] = [
    ("T15", {}, "`inputs` is missing"),
    ("T15", {"inputs": None}, "`inputs`: expected `str`, got `null`"),
    ("T15", {"inputs": ["a"]}, "`inputs`: expected `str`, got `array`"),
    ("T15", {"inputs": "a", "parameters": 5}, "`parameters`: expected `object | null`, got `int`"),
    ("T48", {"inputs": "a", "parameters": {"grammar": {}}}, "`parameters.grammar.type`: expected one of "),
    (
        "T48",
        {"inputs": "a", "parameters": {"grammar": {"type": "json"}}},
        "`parameters.grammar.value` is missing",
    ),
    (
        "T48",
        {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": {}}}},
        "`parameters.grammar.value`: expected a string",
    ),
    (
        "T48",
        {"inputs": "a", "parameters": {"grammar": {"type": "json_schema", "value": {}}}},
        "`parameters.grammar.value.schema` is missing",
    ),
    ("T38", {"inputs": "a", "parameters": {"seed": 2**64}}, "`parameters.seed`: expected `int | null`"),
    ("T45", {"inputs": "a", "parameters": {"stop": "x"}}, "`parameters.stop`: expected `array | null`"),
]


@pytest.mark.parametrize("route", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(("row", "body", "text"), SHAPES)
async def test_wrong_shapes(tgi: Facade, route: str, row: str, body: Any, text: str) -> None:
    status, found, kind = (await tgi.post(route, body)).error
    assert (status, kind) == (422, "validation"), row
    assert found.startswith(f"Failed to deserialize the JSON body into the target type: {text}")


NAMES = [
    "best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "typical_p",
    "do_sample", "max_new_tokens", "return_full_text", "stop", "truncate", "watermark", "details",
    "decoder_input_details", "seed", "top_n_tokens", "grammar", "adapter_id",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_null_is_the_same_as_absent(tgi: Facade, name: str) -> None:
    absent = await tgi.generate(unheard_of=1)
    expected = tgi.sampling
    given = await tgi.generate(**{name: None})
    assert given.status == 200
    assert (given.body, tgi.sampling) == (absent.body, expected)


@pytest.mark.parametrize("body", [{"inputs": "hi"}, {"inputs": "hi", "parameters": None}])
async def test_t34_without_any_parameters_tokens_are_sampled(tgi: Facade, body: Any) -> None:
    reply = await tgi.post("Generate", body)
    assert reply.status == 200
    assert (tgi.sampling.temperature, tgi.sampling.max_tokens) == (1.0, CONTEXT - 2)
    assert tgi.sampling.seed is not None


async def test_t43_truncate_keeps_the_end_of_the_prompt(tgi: Facade) -> None:
    assert (await tgi.generate("abcdefgh", truncate=3)).status == 200
    assert tgi.tokenizer.decode(tgi.engine.tickets[-1].prompt) == "fgh"
    assert (await tgi.generate("a" * 200, truncate=LONGEST)).status == 200
    assert len(tgi.engine.tickets[-1].prompt) == LONGEST


async def test_t44_without_a_length_the_rest_of_the_context_is_filled(tgi: Facade) -> None:
    assert (await tgi.generate("abcd", do_sample=False)).status == 200
    assert tgi.sampling.max_tokens == CONTEXT - 4


@pytest.mark.parametrize(
    ("characters", "text"),
    [
        (CONTEXT, "`inputs` must have less than 63 tokens. Given: 64"),
        (
            CONTEXT + 1,
            (
                "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 65 `inputs` tokens and 0 "
                "`max_new_tokens`"
            ),
        ),
        (CONTEXT * 1000, "`inputs` must have less than "),
    ],
)
async def test_prompts_that_are_too_long(tgi: Facade, characters: int, text: str) -> None:
    status, found, kind = (await tgi.generate("a" * characters)).error
    assert (status, kind) == (422, "validation")
    assert found.startswith(PREFIX + text)


async def test_an_empty_prompt(tgi: Facade) -> None:
    expected = (422, f"{PREFIX}`inputs` cannot be empty", "validation")
    assert (await tgi.generate("")).error == expected
    assert (await tgi.stream("")).error == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
async def test_what_streams_cannot_have(tgi: Facade, given: dict[str, Any], text: str) -> None:
    assert (await tgi.stream(**given)).error == (422, PREFIX + text, "validation")


async def test_the_order_of_the_checks(tgi: Facade) -> None:
    """Each wrong value is named only when those before it in TGI's order are right."""
    wrong: list[tuple[str, Any, Any]] = [
        ("best_of", 9, None), ("temperature", 0, 0.5), ("repetition_penalty", 0, 1),
        ("frequency_penalty", 9, 1), ("top_p", 9, 0.5), ("typical_p", 9, 0.5), ("top_k", 0, 1),
        ("max_new_tokens", 0, 5), ("stop", [*"abcde"], ["a"]), ("seed", -1, 1), ("top_n_tokens", 9, 1),
        ("truncate", 0, 2), ("adapter_id", "x", None),
    ]  # fmt: skip
    given = {name: bad for name, bad, _ in wrong}
    for name, _, good in wrong:
        _, text, _ = (await tgi.generate(**given)).error
        assert f"`{name}`" in text or (name == "adapter_id" and "adapter" in text), (name, text)
        given[name] = good
    assert (await tgi.generate(**given)).status == 200


async def test_limits_are_the_owners() -> None:
    tokenizing = Tokenizing(1)
    tgi = Facade(tokenizing, TgiLimits(max_best_of=3, max_stop_sequences=1, max_top_n_tokens=0))
    assert (await tgi.generate(best_of=3, do_sample=True)).status == 200
    assert (await tgi.generate(stop=["a", "b"])).status == 422
    assert (await tgi.generate(top_n_tokens=1)).status == 422
    tokenizing.close()


CLOSED = '{"type":"object","additionalProperties":false,"properties":{}}'


@pytest.mark.parametrize(
    ("grammar", "kind", "text"),
    [
        ({"type": "regex", "value": "[0-9]+"}, "regex", "[0-9]+"),
        ({"type": "json", "value": {"properties": {}}}, "json_schema", CLOSED),
        (
            {"type": "json_object", "value": '{"properties":{}}'},
            "json_schema",
            CLOSED,
        ),
        (
            {"type": "json_schema", "value": {"name": "n", "schema": {"type": "object", "properties": {}}}},
            "json_schema",
            CLOSED,
        ),
    ],
)
async def test_t48_forms_of_grammars(tgi: Facade, grammar: Any, kind: str, text: str) -> None:
    assert (await tgi.generate(grammar=grammar)).status == 200
    assert (tgi.sampling.grammar.kind, tgi.sampling.grammar.text) == (kind, text)


async def test_t48_objects_have_no_other_properties(tgi: Facade) -> None:
    inner = {"properties": {"properties": {"type": "string"}}}
    open_ended = {"properties": {}, "additionalProperties": True}
    schema = {
        "properties": {
            "a": {"items": inner},
            "b": {"anyOf": [inner, open_ended]},
            "c": {"$ref": "#/$defs/d"},
        },
        "$defs": {"d": {"allOf": [inner], "properties": {}}},
    }
    assert (await tgi.generate(grammar={"type": "json", "value": schema})).status == 200
    found = json.loads(tgi.sampling.grammar.text)
    closed = {"type": "object", "additionalProperties": False, **inner}
    assert found["additionalProperties"] is False
    assert found["properties"]["a"] == {"items": closed}
    assert found["properties"]["b"] == {"anyOf": [closed, {"type": "object", **open_ended}]}
    assert found["$defs"]["d"] == {"allOf": [inner], "properties": {}}


@pytest.mark.parametrize("levels", [64, 500])
@pytest.mark.parametrize("keyword", ["properties", "enum"])
async def test_t48_hostile_schemas_are_refused(tgi: Facade, levels: int, keyword: str) -> None:
    schema: Any = '{"properties":{}}'
    for _ in range(levels):
        schema = '{"properties":{"a":' + schema + "}}" if keyword == "properties" else f"[{schema}]"
    if keyword == "enum":
        schema = '{"properties":{},"enum":' + schema + "}"
    body = b'{"inputs":"a","parameters":{"grammar":{"type":"json","value":%b}}}' % schema.encode()
    reply = await tgi.post("Generate", body)
    if (keyword, levels) == ("enum", 64):  # what the engine says of it is its own affair
        assert reply.status == 200
    else:
        text = "Input validation error: grammar is not valid: it is nested too deeply"
        assert reply.error == (422, text, "validation")


async def test_t48_a_grammar_that_the_engine_refuses(tgi: Facade) -> None:
    tgi.engine.refuse = RequestRefusedError("unclosed class")
    reply = await tgi.generate(grammar={"type": "regex", "value": "["})
    assert reply.error == (422, f"{PREFIX}grammar is not valid: unclosed class", "validation")


@pytest.mark.parametrize(
    ("family", "field", "legal", "illegal"),
    [
        ("tgi", "top_p", 1.0, 1.01),
        ("tgi", "temperature", 1e-30, 0),
        ("oicm", "temperature", 2, 2.01),
        ("openai", "max_tokens", 1, 0),
        ("vllm", "max_tokens", 1, float("nan")),
    ],
)
def test_families_have_ranges_of_their_own(family: str, field: str, legal: float, illegal: float) -> None:
    FAMILIES[family].check(field, legal)
    with pytest.raises(InvalidArgumentError) as raised:
        FAMILIES[family].check(field, illegal)
    assert field in raised.value.message
    assert raised.value.metadata["field"] == field
    FAMILIES[family].check("no such field", illegal)


def test_families_have_defaults_of_their_own() -> None:
    assert FAMILIES["oicm"].default("temperature") == 0.7
    assert FAMILIES["oicm"].default("top_p") == 0.9
    assert FAMILIES["vllm"].default("max_tokens") == 16
    assert FAMILIES["tgi"].default("temperature") is None
