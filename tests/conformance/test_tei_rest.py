"""Text Embeddings Inference over REST, through Envoy: the routes beside embed, rerank and predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests

from running import ServerProcess


@pytest.fixture
def post(server: ServerProcess) -> Any:
    def send(path: str, body: Any, status: int = 200) -> Any:
        answer = requests.post(f"{server.url}{path}", json=body, timeout=30)
        assert answer.status_code == status, answer.text
        return answer

    return send


def test_embed_all(post: Any) -> None:
    texts = ["deep learning", "Paris is the capital of France."]
    answer = post("/embed_all", {"inputs": texts})
    tokens = post("/tokenize", {"inputs": texts, "model": "minilm"}).json()
    assert [len(rows) for rows in answer.json()] == [len(row) for row in tokens]
    plain = post("/embed", {"inputs": texts, "normalize": False}).json()
    for rows, vector in zip(answer.json(), plain, strict=True):
        np.testing.assert_allclose(np.mean(rows, axis=0), vector, atol=1e-5)
    assert int(answer.headers["x-compute-tokens"]) == sum(map(len, tokens))


def test_embed_sparse_needs_a_splade_model(post: Any) -> None:
    assert post("/embed_sparse", {"inputs": "a"}, 424).json() == {
        "error": "Backend error: Model is not an embedding model with SPLADE pooling",
        "error_type": "Backend",
    }


def test_similarity(post: Any) -> None:
    sentences = ["Paris is the capital of France.", "Bananas are yellow.", "France's capital is Paris."]
    body = {"inputs": {"source_sentence": sentences[0], "sentences": sentences}}
    answer = post("/similarity", body)
    same, other, near = answer.json()
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > other
    vectors = np.array(post("/embed", {"inputs": sentences}).json())
    np.testing.assert_allclose(answer.json(), vectors @ vectors[0], atol=1e-5)
    assert "x-inference-time" in answer.headers


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (
            {"inputs": {"source_sentence": "a", "sentences": []}},
            400,
            {"error": "`inputs.sentences` cannot be empty", "error_type": "Empty"},
        ),
        (
            {"inputs": {"source_sentence": "a", "sentences": ["b"] * 33}},
            422,
            {"error": "batch size 33 > maximum allowed batch size 32", "error_type": "Validation"},
        ),
    ],
)
def test_similarity_limits(post: Any, body: Any, status: int, error: Any) -> None:
    assert post("/similarity", body, status).json() == error


def test_similarity_with_a_prompt_it_does_not_have(post: Any) -> None:
    body = {
        "inputs": {"source_sentence": "a", "sentences": ["b"]},
        "parameters": {"prompt_name": "query", "truncate": None},
    }
    assert post("/similarity", body, 422).json()["error_type"] == "Validation"


def test_decode(post: Any) -> None:
    [tokens] = post("/tokenize", {"inputs": "deep learning", "model": "minilm"}).json()
    ids = [token["id"] for token in tokens]
    assert post("/decode", {"ids": ids}).json() == ["deep learning"]
    assert post("/decode", {"ids": [ids, ids[1:2]], "skip_special_tokens": False}).json() == [
        "[CLS] deep learning [SEP]",
        "deep",
    ]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"ids": []}, 400, "Empty"),
        ({"ids": [[]]}, 400, "Empty"),
        ({"ids": [1, [2]]}, 422, "Validation"),
        ({"ids": [-1]}, 422, "Validation"),
        ({"ids": [10**9]}, 422, "Validation"),
        ({"ids": "text"}, 422, "Validation"),
    ],
)
def test_decode_refuses(post: Any, body: Any, status: int, kind: str) -> None:
    assert post("/decode", body, status).json()["error_type"] == kind


def test_below_the_prefix_the_url_chooses_the_model(post: Any) -> None:
    assert post("/models/sentiment/proxy/embed_all", {"inputs": "a"}, 400).json()["error_type"]
    [row] = post("/models/minilm/proxy/embed_all", {"inputs": "a"}).json()
    assert len(row) == 3
