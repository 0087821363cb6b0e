"""What vLLM and OpenAI read as it is: token ids, rendered conversations, switches; names in errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pooling_routes import CONVERSATION, TOO_LONG, Routes, counted, pooling_routes, unit

from headrace.server.repository.model import Task
from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
async def post(repository: Any, tokenizing: Tokenizing, rest: Any) -> Routes:
    return pooling_routes(rest, repository, tokenizing)


@pytest.fixture
def words(repository: Any) -> Any:
    """Token ids of words, without special tokens."""
    return lambda text: repository.tokenizer.encode(text, add_special_tokens=False).ids


async def test_token_ids_are_computed_as_they_are(post: Routes, words: Any, reference: Any) -> None:
    """No text in between: an order that no text has stays, and nothing is put around them."""
    good, bad = words("good bad")
    answer = (await post("embeddings", {"model": "e", "input": [bad, good, good]})).json
    vectors = reference("good bad")["token_embeddings"][1:-1]
    expected = unit(np.mean([vectors[1], vectors[0], vectors[0]], axis=0))
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=1e-6)
    assert answer["usage"] == counted(3)


@pytest.mark.parametrize("route", ["embeddings", "pooling", "classify"])
async def test_every_id_of_the_vocabulary_is_one_token(post: Routes, repository: Any, route: str) -> None:
    model = "c" if route == "classify" else "e"
    for token in range(repository.tokenizer.get_vocab_size()):
        answer = await post(route, {"model": model, "input": [token]})
        assert (answer.status, answer.json["usage"]) == (200, counted(1)), token


async def test_ids_of_tokenised_texts_give_the_texts_vector(post: Routes, repository: Any) -> None:
    ids = repository.tokenizer.encode("good bad").ids
    by_id = (await post("embeddings", {"model": "e", "input": [ids, "good bad"]})).json
    first, second = (entry["embedding"] for entry in by_id["data"])
    assert first == second


@pytest.mark.parametrize(("options", "kept"), [
    ({"truncate_prompt_tokens": 2}, slice(0, 2)),
    ({"truncate_prompt_tokens": 2, "truncation_side": "left"}, slice(-2, None)),
    ({}, slice(0, 8)),
])  # fmt: skip
async def test_ids_are_cut_at_the_end_that_is_named(
    post: Routes, words: Any, options: Any, kept: slice
) -> None:
    ids = words(TOO_LONG)
    assert len(ids) == 9
    cut = (await post("embeddings", {"model": "e", "input": ids, **options})).json
    same = (await post("embeddings", {"model": "e", "input": ids[kept]})).json
    assert (cut["data"], cut["usage"]) == (same["data"], same["usage"])


async def test_too_many_ids_are_refused_where_texts_are(post: Routes, words: Any) -> None:
    answer = await post("classify", {"model": "c", "input": words(TOO_LONG)})
    assert answer.status == 400
    assert "maximum context length is 8 tokens" in answer.json["error"]["message"]
    unknown = await post("embeddings", {"model": "e", "input": [5, 10**6]})
    assert "token id 1000000 is out of vocabulary" in unknown.json["error"]["message"]


async def test_ids_have_no_prompt(post: Routes, words: Any) -> None:
    ids = words("good")
    assert (await post("embeddings", {"model": "prompted", "input": ids})).json["usage"] == counted(1)
    text = (await post("embeddings", {"model": "prompted", "input": "good"})).json
    assert text["usage"] == counted(5)  # "what is " and two special tokens


async def test_conversations_have_no_prompt(post: Routes) -> None:
    """The template has written all of the text."""
    body = {"model": "prompted", "messages": CONVERSATION, "chat_template": "{{ messages[0].content }}"}
    assert (await post("embeddings", body)).json["usage"] == counted(1)


@pytest.mark.parametrize("off", [False, 0, "false", "0"])
@pytest.mark.parametrize("route", ["embeddings", "pooling", "classify"])
async def test_switches_are_read_as_leniently_as_pydantic_does(post: Routes, route: str, off: Any) -> None:
    body = {"model": "c" if route == "classify" else "e", "input": "good", "add_special_tokens": off}
    assert (await post(route, body)).json["usage"] == counted(1)


@pytest.mark.parametrize("field", ["encoding_format", "embed_dtype", "endianness"])
async def test_an_empty_word_is_none_of_the_words(post: Routes, field: str) -> None:
    answer = await post("embeddings", {"model": "e", "input": "good", field: ""})
    assert (answer.status, answer.json["error"]["param"]) == (400, field)


@pytest.mark.parametrize(("route", "body", "prefix"), [
    ("embeddings", {"model": "e", "input": "a"}, "embd-"),
    ("pooling", {"model": "e", "input": "a"}, "pool-"),
    ("classify", {"model": "c", "input": "a"}, "classify-"),
    ("score", {"model": "x", "text_1": "a", "text_2": "b"}, "score-"),
    ("rerank", {"model": "x", "query": "a", "documents": ["b"]}, "rerank-"),
])  # fmt: skip
async def test_a_request_may_name_itself(post: Routes, route: str, body: Any, prefix: str) -> None:
    assert (await post(route, {**body, "request_id": "mine"})).json["id"] == f"{prefix}mine"


async def test_a_limit_of_nothing_is_no_limit(post: Routes) -> None:
    """0 is the default of ``max_tokens_per_doc``: it gives no leave to cut."""
    body = {"model": "x", "query": "a", "documents": [TOO_LONG]}
    plain, zero = [await post("rerank", {**body, **more}) for more in ({}, {"max_tokens_per_doc": 0})]
    assert plain.status == zero.status == 400
    assert plain.json["error"] == zero.json["error"]
    assert (await post("rerank", {**body, "max_tokens_per_doc": 2})).status == 200


@pytest.mark.parametrize(("route", "body", "param", "message"), [
    ("score", {"model": "e", "data_1": "", "data_2": "x"}, "data_1", "`data_1` cannot be empty"),
    ("score", {"model": "x", "queries": "a", "items": [TOO_LONG]}, "queries", "maximum context length"),
    ("score", {"model": "x", "text_1": ["a"] * 3, "text_2": ["b"] * 2}, "text_1", "1:1, 1:N or N:N"),
    ("score", {"model": "x", "data_1": {"content": [5]}, "data_2": "y"}, "data_1", "string `text`"),
    ("rerank", {"model": "x", "query": "a", "documents": [TOO_LONG]}, "documents", "maximum context length"),
    ("cohere", {"model": "e", "texts": [""]}, "texts", "`texts` cannot be empty"),
    ("cohere", {"model": "e", "texts": [TOO_LONG], "truncate": "NONE"}, "texts", "This model's maximum"),
    (
        "cohere", {"model": "e", "texts": [TOO_LONG], "truncate": "NONE", "max_tokens": 3}, "texts",
        "This request's maximum context length is 3 tokens",
    ),
    ("classify", {"model": "c", "input": "a" * 3000}, "input", "3000 characters, which exceeds this limit"),
])  # fmt: skip
async def test_errors_name_what_the_body_has(
    post: Routes, route: str, body: Any, param: str, message: str
) -> None:
    answer = await post(route, body)
    error = answer.json["error"]
    assert (answer.status, error["param"]) == (400, param)
    assert message in error["message"]
    if "context length" in message or "exceeds" in message:
        assert "(context_length_exceeded)" in error["message"]


@pytest.mark.parametrize("pools", [{"pooling": "splade"}, {"pools_inside": True}])
async def test_what_needs_vectors_of_tokens(post: Routes, repository: Any, pools: Any) -> None:
    repository.text("one", Task.EMBED, **pools)
    for route, body in (
        ("rerank", {"query": "a", "documents": ["b"]}),
        ("pooling", {"input": "a", "task": "token_embed"}),
    ):
        answer = await post(route, {"model": "one", **body})
        assert (answer.status, answer.json["error"]["type"]) == (400, "BadRequestError")
        assert "unknown output" not in answer.json["error"]["message"]
    plain = await post("pooling", {"model": "one", "input": "a"})
    assert len(plain.json["data"][0]["data"]) == 16


async def test_a_ranking_has_the_models_prompt(post: Routes) -> None:
    """Queries and documents of late interaction are texts like all others."""
    answer = await post("rerank", {"model": "prompted", "query": "good", "documents": ["bad", "a"]})
    assert answer.json["usage"]["prompt_tokens"] == 3 * 5
