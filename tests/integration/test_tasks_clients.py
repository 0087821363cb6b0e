"""Clients of Text Embeddings Inference that people use, and what they rely on."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest
import requests
from huggingface_hub import InferenceClient


def test_huggingface_feature_extraction(server: Any) -> None:
    vectors = InferenceClient(model=f"{server.url}/embed").feature_extraction("What is Deep Learning?")
    assert vectors.shape == (1, 384)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_llama_index_bodies(server: Any) -> None:
    headers = {"Authorization": "Bearer -"}
    embedded = requests.post(
        f"{server.url}/embed", headers=headers, json={"inputs": ["a", "b"], "truncate": True}, timeout=60
    )
    assert [len(vector) for vector in embedded.json()] == [384, 384]
    texts = ["Bananas are yellow.", "Paris is in France."]
    ranked = requests.post(
        f"{server.url}/rerank", headers=headers, json={"query": "Where is Paris?", "texts": texts}, timeout=60
    ).json()
    assert len(ranked) == len(texts)
    assert ranked[0]["index"] == 1


def test_a_body_needs_no_content_type(server: Any) -> None:
    answer = requests.post(
        f"{server.url}/embed", data=b'{"inputs": "a"}', headers={"Content-Type": ""}, timeout=60
    )
    assert answer.status_code == 200


def test_compute_headers_reach_the_client(server: Any) -> None:
    answer = requests.post(f"{server.url}/embed", json={"inputs": ["good", "bad"]}, timeout=60)
    assert answer.headers["x-compute-characters"] == "7"
    assert answer.headers["x-compute-tokens"] == "6"
    assert int(answer.headers["x-total-time"]) >= int(answer.headers["x-inference-time"])


@pytest.mark.parametrize(("path", "body", "status", "error_type"), [
    ("/embed", {"inputs": []}, 400, "Empty"),
    ("/embed", {"inputs": ["a"] * 33}, 422, "Validation"),
    ("/embed", {"inputs": "word " * 600, "truncate": False}, 422, "Validation"),
    ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "Validation"),
    ("/rerank", {"query": "a", "texts": []}, 400, "Empty"),
    ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation"),
])  # fmt: skip
def test_errors_reach_the_client(server: Any, path: str, body: Any, status: int, error_type: str) -> None:
    answer = requests.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error_type"] == error_type


def test_concurrent_requests_keep_their_own_answers(server: Any) -> None:
    texts = [f"number {index}" for index in range(24)]

    def embed(text: str) -> list[float]:
        answer = requests.post(
            f"{server.url}/models/minilm-torch/proxy/embed", json={"inputs": text}, timeout=60
        )
        vector: list[float] = answer.json()[0]
        return vector

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(embed, texts))
    alone = [embed(text) for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)
