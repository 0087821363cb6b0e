"""vLLM's score, classify and pooling routes: every form of body, option and answer, and the errors."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import orjson
import pytest
from pooling_routes import CONVERSATION, TEMPLATE, TOO_LONG, Routes, counted, pooling_routes, unit

from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
async def post(repository: Any, tokenizing: Tokenizing, rest: Any) -> Routes:
    return pooling_routes(rest, repository, tokenizing)


def sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


# /score


@pytest.mark.parametrize(("first", "second"), [
    ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"), ("text_1", "text_2"),
])  # fmt: skip
async def test_score_names_of_the_pair(post: Routes, reference: Any, first: str, second: str) -> None:
    answer = (await post("score", {"model": "x", first: "good", second: "bad a"})).json
    assert {"id", "object", "created", "model", "data", "usage"} == set(answer)
    assert (answer["object"], answer["model"]) == ("list", "x")
    assert answer["usage"] == counted(6)
    (entry,) = answer["data"]
    assert (entry["index"], entry["object"]) == (0, "score")
    expected = sigmoid(reference(("good", "bad a"))["logits"][0])
    assert entry["score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("firsts", "seconds", "pairs"), [
    ("a", "b", [("a", "b")]),
    ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
    (["a"], ["b", "c"], [("a", "b"), ("a", "c")]),
    (["a", "good"], ["b", "c"], [("a", "b"), ("good", "c")]),
])  # fmt: skip
@pytest.mark.parametrize("model", ["x", "e"])
async def test_score_counts(
    post: Routes, reference: Any, model: str, firsts: Any, seconds: Any, pairs: list[Any]
) -> None:
    answer = (await post("score", {"model": model, "data_1": firsts, "data_2": seconds})).json
    found = [entry["score"] for entry in answer["data"]]
    if model == "x":
        expected = [sigmoid(reference(pair)["logits"][0]) for pair in pairs]
    else:
        expected = [np.dot(*(unit(reference(text)["embedding"]) for text in pair)) for pair in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [entry["index"] for entry in answer["data"]] == list(range(len(pairs)))


@pytest.mark.parametrize(("body", "text", "param"), [
    ({"data_1": ["a", "b"], "data_2": ["a", "b", "c"]}, "1:1, 1:N or N:N", "data_1"),
    ({"data_1": ["a", "b"], "data_2": "a"}, "1:1, 1:N or N:N", "data_1"),
    ({"data_1": [], "data_2": ["a"]}, "At least one text pair", "data_1"),
    ({"data_1": "a", "data_2": []}, "At least one text pair", "data_1"),
    ({"data_1": "a"}, "`queries` and `items`", "data_1"),
    ({}, "`queries` and `items`", "data_1"),
    ({"data_1": 3, "data_2": "a"}, "expected a string", "data_1"),
    ({"data_1": "a", "data_2": ["a", None]}, "expected a string", "data_2[1]"),
    ({"data_1": "a", "data_2": [{"content": [{"type": "audio"}]}]}, "'audio' is not read", "data_2[0]"),
    ({"data_1": "a", "data_2": ["b"] * 2049}, "batch size 2049 > maximum allowed batch size 2048", None),
    ({"data_1": "a", "data_2": "b", "max_tokens_per_doc": -1}, "at least 0", "max_tokens_per_doc"),
])  # fmt: skip
async def test_score_errors(post: Routes, body: Any, text: str, param: str | None) -> None:
    answer = await post("score", {"model": "x", **body})
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert text in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)


async def test_score_of_a_classifier_with_several_labels_is_refused(post: Routes) -> None:
    answer = await post("score", {"model": "c", "data_1": "a", "data_2": "b"})
    assert (answer.status, answer.json["error"]["type"]) == (400, "BadRequestError")


async def test_score_use_activation_false_gives_logits(post: Routes, reference: Any) -> None:
    answer = (await post("score", {"model": "x", "data_1": "a", "data_2": "b", "use_activation": False})).json
    assert answer["data"][0]["score"] == pytest.approx(reference(("a", "b"))["logits"][0], abs=1e-5)


async def test_scores_of_a_model_that_gives_logits(post: Routes) -> None:
    """A CrossEncoder without an activation: what vLLM reads off its configuration."""
    body = {"data_1": "a", "data_2": "b"}
    values = {}
    for model, activation in (("raw", None), ("x", False), ("raw", True), ("x", None)):
        answer = (await post("score", {**body, "model": model, "use_activation": activation})).json
        values[model, activation] = answer["data"][0]["score"]
    assert values["raw", None] == values["x", False]
    assert values["raw", True] == values["x", None] != values["raw", None]
    ranking = (await post("rerank", {"model": "raw", "query": "a", "documents": ["b"]})).json
    assert ranking["results"][0]["relevance_score"] == values["raw", None]
    tei = (await post("rerank", {"model": "raw", "query": "a", "texts": ["b"]})).json
    assert tei[0]["score"] == values["x", None]  # Text Embeddings Inference always has the sigmoid


async def test_score_too_long_is_refused_or_cut(post: Routes) -> None:
    body = {"model": "x", "data_1": "good", "data_2": TOO_LONG}
    refused = await post("score", body)
    assert refused.status == 400
    assert "maximum context length is 8 tokens" in refused.json["error"]["message"]
    assert "Please reduce the length of the input prompt" in refused.json["error"]["message"]
    for field, tokens in (({"truncate_prompt_tokens": 6}, 6), ({"truncate_prompt_tokens": -1}, 8)):
        assert (await post("score", {**body, **field})).json["usage"]["prompt_tokens"] == tokens
    above = await post("score", {**body, "truncate_prompt_tokens": 9})
    assert above.status == 400
    assert "Please request a smaller truncation size." in above.json["error"]["message"]


async def test_score_max_tokens_per_query_and_doc(post: Routes) -> None:
    body = {"model": "x", "data_1": "good bad", "data_2": TOO_LONG}
    limits = {"max_tokens_per_query": 1, "max_tokens_per_doc": 2}
    cut = (await post("score", {**body, **limits})).json
    same = (await post("score", {"model": "x", "data_1": "good", "data_2": "what is"})).json
    assert cut["data"] == same["data"]
    assert cut["usage"] == same["usage"] == counted(6)


# /classify: told apart from OICM's by the body's keys


async def test_classify(post: Routes, reference: Any) -> None:
    answer = (await post("classify", {"model": "c", "input": ["good", "bad a"]})).json
    assert {"id", "object", "created", "model", "data", "usage"} == set(answer)
    assert (answer["object"], answer["usage"]) == ("list", counted(7))
    for index, text in enumerate(["good", "bad a"]):
        entry = answer["data"][index]
        logits = reference(text)["logits"]
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(entry["probs"], expected, atol=1e-5)
        assert entry["label"] == ("negative", "neutral", "positive")[int(expected.argmax())]
        assert (entry["index"], entry["num_classes"]) == (index, 3)


async def test_classify_use_activation_false_gives_logits(post: Routes, reference: Any) -> None:
    answer = (await post("classify", {"model": "c", "input": "good", "use_activation": False})).json
    np.testing.assert_allclose(answer["data"][0]["probs"], reference("good")["logits"], atol=1e-5)


async def test_classify_messages(post: Routes) -> None:
    chat = {"model": "c", "messages": CONVERSATION, "chat_template": TEMPLATE, "add_special_tokens": True}
    plain = (await post("classify", {"model": "c", "input": "good bad a"})).json
    assert (await post("classify", chat)).json["data"] == plain["data"]


async def test_classify_with_inputs_stays_oicms(post: Routes) -> None:
    answer = (await post("classify", {"model": "c", "inputs": "good", "input": "bad"})).json
    assert set(answer) == {"classification"}
    error = (await post("classify", {"model": "c", "inputs": []})).json
    assert set(error) == {"error", "error_type"}
    null = (await post("classify", {"model": "c", "inputs": "good", "input": None, "messages": None})).json
    assert null == answer


async def test_classify_null_is_absent(post: Routes) -> None:
    plain = (await post("classify", {"model": "c", "input": "good"})).json
    null = (await post("classify", {"model": "c", "inputs": None, "input": "good"})).json
    assert null["data"] == plain["data"]
    nothing = (await post("classify", {"model": "c", "input": None})).json
    assert nothing == {"error": "`inputs` is missing", "error_type": "Validation"}


@pytest.mark.parametrize("given", ["", [], [""], [[]], 7, {"a": 1}, None])
async def test_classify_errors_have_vllms_form(post: Routes, given: Any) -> None:
    answer = await post(
        "classify", {"model": "c", "input": given, **({} if given is not None else {"messages": []})}
    )
    assert answer.status == 400
    assert answer.json["error"]["code"] == 400
    assert answer.json["error"]["param"] in ("input", "messages")


# /pooling


async def test_pooling_gives_token_vectors_by_default(post: Routes, reference: Any) -> None:
    answer = (await post("pooling", {"model": "e", "input": ["good", "bad a"]})).json
    assert (answer["object"], answer["usage"]) == ("list", counted(7))
    for entry, text in zip(answer["data"], ["good", "bad a"], strict=True):
        assert entry["object"] == "pooling"
        expected = [unit(vector) for vector in reference(text)["token_embeddings"]]
        np.testing.assert_allclose(entry["data"], expected, atol=1e-6)
    raw = (await post("pooling", {"model": "e", "input": "good", "use_activation": False})).json
    np.testing.assert_allclose(raw["data"][0]["data"], reference("good")["token_embeddings"], atol=1e-6)
    short = (await post("pooling", {"model": "e", "input": "good", "dimensions": 3})).json
    assert [len(row) for row in short["data"][0]["data"]] == [3, 3, 3]
    body = {"model": "e", "input": "good", "dimensions": 3, "use_activation": False}
    cut = (await post("pooling", body)).json["data"][0]["data"]
    np.testing.assert_allclose(cut, reference("good")["token_embeddings"][:, :3], atol=1e-6)


async def test_pooling_tasks(post: Routes) -> None:
    vector = (await post("pooling", {"model": "e", "input": "good", "task": "embed"})).json
    embedding = (await post("embeddings", {"model": "e", "input": "good"})).json
    assert vector["data"][0]["data"] == embedding["data"][0]["embedding"]
    classes = (await post("pooling", {"model": "c", "input": "good", "task": "classify"})).json
    probabilities = (await post("classify", {"model": "c", "input": "good"})).json["data"][0]["probs"]
    assert classes["data"][0]["data"] == probabilities
    assert (await post("pooling", {"model": "c", "input": "good"})).json["data"] == classes["data"]


@pytest.mark.parametrize(("model", "task"), [
    ("e", "classify"), ("e", "token_classify"), ("e", "plugin"), ("c", "embed"), ("c", "token_embed"),
    ("e", "?"),
])  # fmt: skip
async def test_pooling_tasks_that_a_model_has_not(post: Routes, model: str, task: str) -> None:
    answer = await post("pooling", {"model": model, "input": "good", "task": task})
    assert (answer.status, answer.json["error"]["param"]) == (400, "task")
    assert f"Task {task} is not supported" in answer.json["error"]["message"]


async def test_pooling_base64(post: Routes) -> None:
    plain = (await post("pooling", {"model": "e", "input": "good"})).json["data"][0]["data"]
    packed = (await post("pooling", {"model": "e", "input": "good", "encoding_format": "base64"})).json
    found = np.frombuffer(b64decode(packed["data"][0]["data"]), "<f4").reshape(3, -1)
    assert np.array_equal(found, np.array(plain, np.float32))


async def test_pooling_bytes_say_what_is_where(post: Routes) -> None:
    inputs = ["good", "bad a"]
    plain = (await post("pooling", {"model": "e", "input": inputs})).json["data"]
    answer = await post("pooling", {"model": "e", "input": inputs, "encoding_format": "bytes"})
    metadata = orjson.loads(answer.headers["metadata"])
    assert metadata["usage"] == counted(7)
    for entry, row in zip(metadata["data"], plain, strict=True):
        found = np.frombuffer(answer.body[entry["start"] : entry["end"]], "=f4").reshape(entry["shape"])
        assert np.array_equal(found, np.array(row["data"], np.float32))


async def test_compute_headers(post: Routes) -> None:
    for route, body, characters, tokens in (
        ("embeddings", {"model": "e", "input": ["good", "bad a"]}, "9", "7"),
        ("embeddings", {"model": "e", "input": "good", "encoding_format": "bytes"}, "4", "3"),
        ("cohere", {"model": "e", "texts": ["good"]}, "4", "3"),
        ("pooling", {"model": "e", "input": "good"}, "4", "3"),
        ("pooling", {"model": "c", "input": "good"}, "4", "3"),
        ("classify", {"model": "c", "input": "good"}, "4", "3"),
        ("classify", {"model": "c", "inputs": "good"}, "4", "3"),
        ("score", {"model": "x", "data_1": "a", "data_2": "b"}, "2", "5"),
        ("rerank", {"model": "x", "query": "a", "documents": ["b"]}, "2", "5"),
    ):
        headers = (await post(route, body)).headers
        assert (headers["x-compute-characters"], headers["x-compute-tokens"]) == (characters, tokens), route
        assert headers["x-compute-type"] == "cuda"
        assert headers["x-inference-time"].isdigit()


async def test_names_of_requests_come_back(post: Routes) -> None:
    named = {"x-request-id": "mine"}
    for route, body, prefix in (
        ("embeddings", {"model": "e", "input": "a"}, "embd-"),
        ("pooling", {"model": "e", "input": "a"}, "pool-"),
        ("classify", {"model": "c", "input": "a"}, "classify-"),
        ("score", {"model": "x", "data_1": "a", "data_2": "b"}, "score-"),
        ("rerank", {"model": "x", "query": "a", "documents": ["b"]}, "rerank-"),
    ):
        assert (await post(route, body, named)).json["id"] == f"{prefix}mine"
        assert (await post(route, body)).json["id"] != f"{prefix}mine"
