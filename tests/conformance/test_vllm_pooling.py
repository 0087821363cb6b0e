"""vLLM's pooling routes through Envoy, one test for each route, with the real models."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import orjson
import pytest

TEXTS = ["good food", "this is a terrible day", "paris is the capital of france"]
LONG = "word " * 400


@pytest.fixture(scope="module")
def post(server: Any) -> Any:
    def send(path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)

    return send


@pytest.fixture(scope="module")
def vectors(post: Any) -> Any:
    """The float vectors of TEXTS."""
    found = post("/v1/embeddings", {"model": "minilm", "input": TEXTS}).json()
    return np.array([entry["embedding"] for entry in found["data"]], np.float32)


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/models/minilm/proxy/score"])
def test_score_of_an_embedder_is_the_cosine(post: Any, vectors: Any, path: str) -> None:
    body = {"text_1": TEXTS[0], "text_2": TEXTS[1:], "model": "minilm"}
    answer = post(path, body)
    assert answer.status_code == 200
    assert answer.headers["x-compute-tokens"]
    found = [entry["score"] for entry in answer.json()["data"]]
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], atol=1e-5)


def test_score_pairs(post: Any, vectors: Any) -> None:
    body = {"data_1": TEXTS, "data_2": TEXTS[::-1], "model": "minilm"}
    found = [entry["score"] for entry in post("/score", body).json()["data"]]
    np.testing.assert_allclose(found, (vectors * vectors[::-1]).sum(1), atol=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/models/minilm/proxy/rerank"])
def test_rerank_of_documents(post: Any, path: str) -> None:
    body = {"model": "minilm", "query": "capital of france", "documents": TEXTS, "top_n": 2}
    answer = post(path, body).json()
    assert answer["results"][0]["index"] == 2
    assert len(answer["results"]) == 2
    assert answer["results"][0]["document"] == {"text": TEXTS[2], "multi_modal": None}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score"])
def test_too_long_is_400(post: Any, path: str) -> None:
    """Sentences that vLLM's own tests look for."""
    body = {"model": "minilm", "query": "a", "documents": [LONG], "queries": "a"}
    refused = post(path, body)
    assert refused.status_code == 400
    assert "Please reduce the length of the input prompt" in refused.json()["error"]["message"]
    above = post(path, {**body, "truncate_prompt_tokens": 10_000})
    assert above.status_code == 400
    assert "Please request a smaller truncation size." in above.json()["error"]["message"]
    assert post(path, {**body, "truncate_prompt_tokens": 10}).status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/v1/classify", "/models/sentiment/proxy/classify"])
def test_classify(post: Any, path: str) -> None:
    answer = post(path, {"model": "sentiment", "input": TEXTS[:2]}).json()
    assert [entry["label"] for entry in answer["data"]] == ["positive", "negative"]
    for entry in answer["data"]:
        assert sum(entry["probs"]) == pytest.approx(1, abs=1e-5)
        assert entry["num_classes"] == 3
    own = post(path, {"model": "sentiment", "inputs": TEXTS[0]}).json()["classification"]
    assert own[0]["score"] == pytest.approx(max(answer["data"][0]["probs"]), abs=1e-6)


@pytest.mark.parametrize("path", ["/v2/embed", "/models/minilm/proxy/v2/embed"])
def test_cohere_embed(post: Any, vectors: Any, path: str) -> None:
    answer = post(path, {"model": "minilm", "texts": TEXTS, "embedding_types": ["float", "ubinary"]}).json()
    np.testing.assert_allclose(answer["embeddings"]["float"], vectors, atol=1e-6)
    bits = np.unpackbits(np.array(answer["embeddings"]["ubinary"], np.uint8), axis=1)
    np.testing.assert_array_equal(bits, vectors >= 0)


def test_pooling(post: Any, vectors: Any) -> None:
    whole = post("/pooling", {"model": "minilm", "input": TEXTS, "task": "embed"}).json()
    np.testing.assert_allclose([entry["data"] for entry in whole["data"]], vectors, atol=1e-6)
    tokens = post("/pooling", {"model": "minilm", "input": TEXTS}).json()
    counts = [len(entry["data"]) for entry in tokens["data"]]
    assert sum(counts) == tokens["usage"]["prompt_tokens"]
    labels = post("/pooling", {"model": "sentiment", "input": TEXTS[:1]}).json()
    assert len(labels["data"][0]["data"]) == 3


def test_wrong_content_type_and_shapes_are_400(server: Any, post: Any) -> None:
    for path in ("/score", "/v1/score", "/pooling", "/v1/embeddings"):
        plain = httpx.post(f"{server.url}{path}", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 400
        if path != "/v1/embeddings":  # which takes JSON of any type
            assert "Only 'application/json' is allowed" in plain.json()["error"]["message"]
        shapes: tuple[Any, ...] = ([], "x", 3, None)
        for body in shapes:
            assert post(path, body).status_code == 400


def test_embeddings_as_bytes(post: Any, vectors: Any) -> None:
    body = {"model": "minilm", "input": TEXTS}
    answer = post("/v1/embeddings", {**body, "encoding_format": "bytes", "endianness": "big"})
    assert answer.headers["content-type"] == "application/octet-stream"
    metadata = orjson.loads(answer.headers["metadata"])
    assert metadata["model"] == "minilm"
    for entry, vector in zip(metadata["data"], vectors, strict=True):
        data = np.frombuffer(answer.content[entry["start"] : entry["end"]], ">f4").reshape(entry["shape"])
        np.testing.assert_allclose(data, vector, atol=1e-6)
    bare = post("/v1/embeddings", {**body, "encoding_format": "bytes_only", "embed_dtype": "float16"})
    assert "metadata" not in bare.headers
    half = np.frombuffer(bare.content, "=f2").reshape(len(TEXTS), -1)
    np.testing.assert_allclose(half, vectors, atol=1e-3)


def test_embeddings_as_bytes_with_the_largest_header(post: Any) -> None:
    """As many vectors as the metadata can describe arrive; one more is refused with the way out."""
    body = {"model": "minilm", "encoding_format": "bytes"}
    count = 1
    while post("/v1/embeddings", {**body, "input": ["a"] * (count + 16)}).status_code == 200:
        count += 16
    assert count > 16
    refused = post("/v1/embeddings", {**body, "input": ["a"] * (count + 16)})
    assert refused.status_code == 400
    assert "bytes_only" in refused.json()["error"]["message"]


@pytest.mark.parametrize("field", ["encoding_format", "embed_dtype", "endianness"])
def test_wrong_literals_are_400(post: Any, field: str) -> None:
    answer = post("/v1/embeddings", {"model": "minilm", "input": "a", field: "bad_value"})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "literal_error" in message
    assert "bad_value" in message


def test_embeddings_of_a_conversation(post: Any) -> None:
    body: dict[str, Any] = {
        "model": "minilm",
        "messages": [{"role": "user", "content": "good food"}],
        "chat_template": "{{ messages[0].content }}",
        "add_special_tokens": True,
    }
    answer = post("/v1/embeddings", body).json()
    plain = post("/v1/embeddings", {"model": "minilm", "input": "good food"}).json()
    assert answer["data"] == plain["data"]
    without = post("/v1/embeddings", {key: body[key] for key in ("model", "messages")})
    assert without.status_code == 400
    assert "has no chat template" in without.json()["error"]["message"]


@pytest.mark.parametrize(("side", "words"), [("right", "one two"), ("left", "nine ten"), (None, "one two")])
def test_embeddings_truncation(post: Any, side: str | None, words: str) -> None:
    text = "one two three four five six seven eight nine ten"
    body = {"model": "minilm", "input": text, "truncate_prompt_tokens": 4, "truncation_side": side}
    answer = post("/v1/embeddings", body).json()
    assert answer["usage"]["prompt_tokens"] == 4
    same = post("/v1/embeddings", {"model": "minilm", "input": words}).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], same["data"][0]["embedding"], atol=1e-6)


def test_errors_of_embeddings_are_read_by_both_families(post: Any) -> None:
    answer = post("/v1/embeddings", {"model": "minilm", "input": "a", "dimensions": 0})
    body = answer.json()
    assert answer.status_code == body["code"] == 400
    assert body["message"] == body["error"]["message"]
    assert (body["type"], body["error"]["type"]) == ("Validation", "invalid_request_error")


def test_request_ids_name_the_answer(post: Any) -> None:
    answer = post("/score", {"text_1": "a", "text_2": "b"}, **{"x-request-id": "mine"}).json()
    assert answer["id"] == "score-mine"
