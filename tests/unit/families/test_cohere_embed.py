"""Cohere's ``/v2/embed``: every form of body, number format and answer, and the errors."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import pytest
from pooling_routes import TOO_LONG, Routes, pooling_routes, unit

from headrace.server.codecs.cohere_embed import embeddings_json, prompt_name
from headrace.server.codecs.json_body import parse
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tokenization import Tokenizing

TEXTS = ["good", "bad a"]
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


@pytest.fixture
async def post(repository: Any, tokenizing: Tokenizing, rest: Any) -> Routes:
    return pooling_routes(rest, repository, tokenizing)


@pytest.fixture
async def vectors(post: Routes) -> Any:
    """The vectors of TEXTS as OpenAI's route gives them."""
    found = (await post("embeddings", {"model": "e", "input": TEXTS})).json
    return np.array([entry["embedding"] for entry in found["data"]], np.float32)


async def test_answer(post: Routes, vectors: Any) -> None:
    answer = await post("cohere", {"model": "e", "texts": TEXTS}, {"x-request-id": "7"})
    found = answer.json
    np.testing.assert_array_equal(np.array(found.pop("embeddings")["float"], np.float32), vectors)
    assert found == {
        "id": "embd-7",
        "texts": TEXTS,
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": 7},
            "tokens": {"input_tokens": 7},
        },
        "response_type": "embeddings_by_type",
    }
    assert answer.headers["x-compute-tokens"] == "7"


async def test_the_first_version(post: Routes, vectors: Any) -> None:
    """``/v1/embed`` has bare lists unless formats are named; TEI's own body stays TEI's."""
    body = {"model": "e", "texts": TEXTS}
    first = (await post("embed", {**body, "input_type": "search_query"})).json
    np.testing.assert_array_equal(np.array(first["embeddings"], np.float32), vectors)
    assert (first["texts"], first["response_type"]) == (TEXTS, "embeddings_floats")
    assert first["meta"]["api_version"] == {"version": "1"}
    named = (await post("embed", {**body, "embedding_types": ["float", "int8"]})).json
    assert list(named["embeddings"]) == ["float", "int8"]
    assert named["response_type"] == "embeddings_by_type"
    assert isinstance((await post("embed", {"model": "e", "inputs": TEXTS})).json, list)
    refused = await post("embed", {"model": "e", "texts": []})
    assert (refused.status, refused.json["error"]["param"]) == (400, "texts")
    both = await post("embed", {"model": "e", "texts": TEXTS, "inputs": 5})
    assert both.json["error_type"] == "Validation"


async def test_every_number_format(post: Routes, vectors: Any) -> None:
    body = {"model": "e", "texts": TEXTS, "embedding_types": [*TYPES, "float"]}
    found = (await post("cohere", body)).json["embeddings"]
    assert list(found) == TYPES
    np.testing.assert_array_equal(np.array(found["float"], np.float32), vectors)
    rounded = np.rint(np.array([unit(row) for row in vectors]) * 127)
    np.testing.assert_array_equal(found["int8"], rounded)
    np.testing.assert_array_equal(found["uint8"], rounded + 128)
    bits = np.packbits(vectors >= 0, axis=1)
    np.testing.assert_array_equal(found["ubinary"], bits)
    np.testing.assert_array_equal(found["binary"], bits.astype(int) - 128)
    np.testing.assert_array_equal([np.frombuffer(b64decode(row), "<f4") for row in found["base64"]], vectors)


def test_bits_and_ranges_of_small_formats() -> None:
    vectors = np.array([[3, -4, 0, -0.0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    assert parse(embeddings_json(vectors, TYPES[1:5])) == {
        "int8": [[76, -102, 0, 0, 0, 0, 0, 0], [-127, 0, 0, 0, 0, 0, 0, 0]],
        "uint8": [[204, 26, 128, 128, 128, 128, 128, 128], [1, 128, 128, 128, 128, 128, 128, 128]],
        "binary": [[63], [-1]],
        "ubinary": [[191], [127]],
    }


def test_int8_keeps_what_is_near() -> None:
    generator = np.random.default_rng(3)
    vectors = generator.standard_normal((50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    small = np.array(parse(embeddings_json(vectors, ["int8"]))["int8"]) / 127
    np.testing.assert_allclose(small @ small.T, vectors @ vectors.T, atol=0.02)


@pytest.mark.parametrize("dimension", [1, 8, 16])
async def test_output_dimension(post: Routes, vectors: Any, dimension: int) -> None:
    body = {"model": "e", "texts": TEXTS, "output_dimension": dimension}
    found = (await post("cohere", body)).json["embeddings"]["float"]
    np.testing.assert_allclose(found, [unit(row[:dimension]) for row in vectors], atol=1e-6)


async def test_inputs_are_texts_in_parts(post: Routes) -> None:
    parts = [{"type": "text", "text": "good"}, {"type": "text", "text": "bad a"}]
    body = {"model": "e", "inputs": [{"content": parts}, {"content": parts[:1]}]}
    found = (await post("cohere", body)).json
    joined = (await post("cohere", {"model": "e", "texts": ["good\nbad a", "good"]})).json
    assert found["embeddings"] == joined["embeddings"]
    assert "texts" not in found


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "what is deep learning good bad"),
        ({"truncate": "END"}, "what is deep learning good bad"),
        ({"truncate": "START"}, "learning good bad a b c"),
        ({"truncate": "START", "max_tokens": 4}, "b c"),
        ({"max_tokens": 4}, "what is"),
        ({"max_tokens": 100}, "what is deep learning good bad"),
    ],
)
async def test_long_texts_are_cut(post: Routes, options: Any, text: str) -> None:
    found = (await post("cohere", {"model": "e", "texts": [TOO_LONG], **options})).json
    expected = (await post("cohere", {"model": "e", "texts": [text], "truncate": "NONE"})).json
    assert found["embeddings"] == expected["embeddings"]
    assert found["meta"] == expected["meta"]


@pytest.mark.parametrize(("options", "limit"), [({}, 8), ({"max_tokens": 4}, 4)])
async def test_long_texts_are_refused_where_none_may_be_cut(post: Routes, options: Any, limit: int) -> None:
    answer = await post("cohere", {"model": "e", "texts": [TOO_LONG], "truncate": "NONE", **options})
    assert answer.status == 400
    assert f"maximum context length is {limit} tokens" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("input_type", "text"),
    [("q", "what is good"), (None, "what is good"), ("search_document", "what is good")],
)
async def test_input_type_is_the_models_prompt(post: Routes, input_type: str | None, text: str) -> None:
    found = (await post("cohere", {"model": "prompted", "texts": ["good"], "input_type": input_type})).json
    plain = (await post("cohere", {"model": "e", "texts": [text]})).json
    assert found["embeddings"] == plain["embeddings"]
    assert found["texts"] == ["good"]


@pytest.mark.parametrize(
    ("input_type", "prompts", "name"),
    [
        (None, ["query"], None),
        ("search_query", ["query", "search_query"], "search_query"),
        ("search_query", ["query", "passage"], "query"),
        ("search_document", ["query", "passage"], "passage"),
        ("search_document", ["document", "passage"], "document"),
        ("classification", ["query"], None),
        ("clustering", [], None),
        ("mine", ["mine"], "mine"),
    ],
)
def test_names_of_prompts(input_type: str | None, prompts: list[str], name: str | None) -> None:
    assert prompt_name(input_type, dict.fromkeys(prompts, "x: ")) == name


def test_unknown_input_type_says_what_is_known() -> None:
    with pytest.raises(InvalidArgumentError, match=r"values: search_query, .*, clustering, mine$"):
        prompt_name("yours", {"mine": "x"})


@pytest.mark.parametrize(
    ("body", "text", "param"),
    [
        ({}, "one of `texts` and `inputs` is needed", "texts"),
        ({"texts": ["a"], "inputs": [{"content": []}]}, "`texts` and `inputs` exclude each other", "texts"),
        ({"texts": []}, "`texts` cannot be empty", "texts"),
        ({"inputs": []}, "`inputs` cannot be empty", "inputs"),
        ({"inputs": [{"content": []}]}, "`inputs[0]` has no text", "inputs[0]"),
        ({"texts": "a"}, "expected `array | null`, got `str`", "texts"),
        ({"texts": ["a"] * 2049}, "batch size 2049 > maximum", None),
        ({"images": ["data:image/png;base64,AAAA"]}, "images are not read, only text", "images"),
        ({"texts": ["a"], "input_type": "image"}, "images are not read, only text", "input_type"),
        (
            {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "content of type 'image_url' is not read",
            "inputs[0]",
        ),
        ({"texts": ["a"], "input_type": "yours"}, "Unsupported input_type 'yours'", "input_type"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "invalid enum value 'int4'", "embedding_types[0]"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, "invalid enum value 'MIDDLE'", "truncate"),
        ({"texts": ["a"], "max_tokens": 0}, "expected at least 1", "max_tokens"),
        ({"texts": ["a"], "output_dimension": 17}, "the maximum is 16", "output_dimension"),
        ({"texts": ["a"], "output_dimension": 0}, "should be positive", "output_dimension"),
        (
            {"texts": ["a"], "output_dimension": 4, "embedding_types": ["binary"]},
            "multiple of 8, not 4",
            "embedding_types",
        ),
        ({"model": "c", "texts": ["a"]}, "this request needs embed", None),
    ],
)
async def test_errors(post: Routes, body: Any, text: str, param: str | None) -> None:
    answer = await post("cohere", {"model": "e", **body})
    assert answer.status == 400
    error = answer.json["error"]
    assert (error["code"], error["param"]) == (400, param)
    assert text in error["message"]


async def test_unknown_model(post: Routes) -> None:
    answer = await post("cohere", {"model": "nope", "texts": ["a"]})
    assert (answer.status, answer.json["error"]["type"]) == (404, "NotFoundError")
