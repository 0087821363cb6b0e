"""The OICM Inference Gateway Guide's calls, one test per row of the feature table (``O28``: row O28)."""

# ruff: noqa: N802 - the tests are named by the rows

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests


@pytest.fixture
def base_url(server: Any) -> str:
    url: str = server.url
    return url


HEADERS = {"Authorization": "Bearer some-key"}


def post(url: str, payload: Any, **headers: str) -> requests.Response:
    return requests.post(url, headers={**HEADERS, **headers}, json=payload, timeout=60)


def test_O01_the_gateway_url_selects_the_model(base_url: str) -> None:
    models = requests.get(f"{base_url}/models/sentiment/proxy/v1/models", headers=HEADERS, timeout=60).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["sentiment"]


@pytest.mark.parametrize(("model", "path", "payload"), [
    ("sentiment", "classify", {"inputs": "this is good!"}),
    ("sentiment", "predict", {"inputs": "this is good!"}),
    ("diabetes", "predict", [[0.01] * 10]),
    ("minilm", "embed", {"inputs": "this is good!"}),
    ("minilm", "rerank", {"query": "good?", "texts": ["this is good!", "bananas"]}),
])  # fmt: skip
def test_O02_paths_work_with_and_without_v1(base_url: str, model: str, path: str, payload: Any) -> None:
    answers = [
        post(f"{base_url}/models/{model}/proxy/{prefix}{path}", payload)
        for prefix in ("", "v1/", "vllm/v1/", "tgi/v1/")
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1


def test_O11_wrong_model_version_id(base_url: str) -> None:
    for path, payload in (("embed", {"inputs": "a"}), ("classify", {"inputs": "a"}), ("predict", [1])):
        answer = post(f"{base_url}/models/nope/proxy/v1/{path}", payload)
        assert answer.status_code == 404
        assert "nope" in answer.json()["error"]
    listed = requests.get(f"{base_url}/models/nope/proxy/v1/models", headers=HEADERS, timeout=60)
    assert listed.status_code == 404


def test_O14_request_timeout_header(base_url: str) -> None:
    url = f"{base_url}/models/minilm/proxy/v1/embed"
    assert post(url, {"inputs": "a"}, **{"OICM-Request-Timeout": "300"}).status_code == 200
    for wrong in ("0", "-1", "soon"):
        refused = post(url, {"inputs": "a"}, **{"OICM-Request-Timeout": wrong})
        assert 400 <= refused.status_code < 500
        assert "OICM-Request-Timeout" in refused.json()["error"]


def test_O20_accept_event_stream_on_models(base_url: str) -> None:
    headers = {**HEADERS, "accept": "text/event-stream"}
    answer = requests.get(f"{base_url}/models/minilm/proxy/v1/models", headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"


def test_O26_the_first_listed_model_can_be_used(base_url: str) -> None:
    inference_url = f"{base_url}/models/minilm/proxy/v1"
    name = requests.get(f"{inference_url}/models", headers=HEADERS, timeout=60).json()["data"][0]["id"]
    answer = post(f"{inference_url}/embeddings", {"model": name, "input": "x"})
    assert answer.status_code == 200
    assert len(answer.json()["data"][0]["embedding"]) == 384


def test_O28_sequence_classification(base_url: str) -> None:
    url = f"{base_url}/models/sentiment/proxy/v1/classify"
    found = post(url, {"inputs": "this is good!"}).json()["classification"]
    assert {entry["label"] for entry in found} == {"positive", "neutral", "negative"}
    assert all(set(entry) == {"label", "score"} for entry in found)
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    listed = post(url, {"inputs": ["this is good!", "this is bad!"]}).json()["classification"]
    assert [entry["label"] for entry in listed[0]] == [entry["label"] for entry in found]
    assert listed[1][0]["label"] == "negative"


def test_O37_embedding(base_url: str) -> None:
    url = f"{base_url}/models/minilm/proxy/v1/embed"
    (one,) = post(url, {"inputs": "What is Deep Learning?"}).json()
    assert len(one) == 384
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    listed = post(url, {"inputs": ["What is Deep Learning?", "good"]}).json()
    assert [len(vector) for vector in listed] == [384, 384]
    raw = post(url, {"inputs": "What is Deep Learning?", "normalize": False}).json()[0]
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-2)
    assert post(url, {"inputs": "word " * 600, "truncate": True}).status_code == 200
    assert post(url, {"inputs": "word " * 600, "truncate": False}).status_code == 422


def test_O38_rerank(base_url: str) -> None:
    url = f"{base_url}/models/minilm/proxy/v1/rerank"
    texts = ["Deep Learning is not...", "Deep learning is..."]
    ranks = post(url, {"query": "What is Deep Learning?", "texts": texts}).json()
    assert {rank["index"] for rank in ranks} == {0, 1}
    assert ranks[0]["score"] >= ranks[1]["score"]
    assert all(set(rank) == {"index", "score"} for rank in ranks)
    with_text = post(url, {"query": "What is Deep Learning?", "texts": texts, "return_text": True}).json()
    assert [rank["text"] for rank in with_text] == [texts[rank["index"]] for rank in ranks]


def test_O39_predict_is_text_classification(base_url: str) -> None:
    found = post(f"{base_url}/models/sentiment/proxy/v1/predict", {"inputs": "Abu Dhabi is great!"}).json()
    assert found[0]["label"] == "positive"
    assert all(set(entry) == {"label", "score"} for entry in found)


def test_O40_predict_takes_an_array(base_url: str) -> None:
    url = f"{base_url}/models/diabetes/proxy/v1/predict"
    answer = post(url, [1, 2, 3])  # as the guide prints it, for a model of ten features
    assert answer.status_code == 422
    assert "[-1,10]" in answer.json()["error"]
    one = post(url, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).json()
    assert len(one["data"]) == 1
    two = post(url, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2).json()
    assert two["data"] == one["data"] * 2


def test_O41_the_signature_has_tensor_specs(base_url: str) -> None:
    meta = post(f"{base_url}/models/diabetes/proxy/v1/predict", [[0.0] * 10]).json()["meta"]
    assert meta == {
        "input_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1, 10]}, "type": "tensor"}],
        "output_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1]}, "type": "tensor"}],
    }


def test_O42_nested_arrays_and_mlflow_keys(base_url: str) -> None:
    url = f"{base_url}/models/iris/proxy/predict"
    rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
    names = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
    bodies: list[Any] = [
        rows,
        {"inputs": rows},
        {"instances": rows},
        {"dataframe_split": {"columns": names, "data": rows}},
        {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]},
    ]
    answers = [post(url, body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    assert {str(answer.json()["data"]) for answer in answers} == {"[0, 2]"}
    assert answers[0].json()["outputs"]["label"] == [0, 2]


@pytest.mark.parametrize(("model", "path", "payload"), [
    ("sentiment", "embed", {"inputs": "a"}),
    ("minilm", "classify", {"inputs": "a"}),
    ("minilm", "predict", {"inputs": "a"}),
    ("iris", "rerank", {"query": "a", "texts": ["b"]}),
    ("sentiment", "rerank", {"query": "a", "texts": ["b"]}),
    ("sentiment", "predict", [1, 2, 3]),
])  # fmt: skip
def test_O43_a_model_of_another_task(base_url: str, model: str, path: str, payload: Any) -> None:
    answer = post(f"{base_url}/models/{model}/proxy/v1/{path}", payload)
    assert answer.status_code == 400
    assert model in answer.json()["error"]


def test_O43_a_model_of_another_task_on_an_openai_path(base_url: str) -> None:
    answer = post(f"{base_url}/models/sentiment/proxy/v1/embeddings", {"input": "a"})
    assert answer.status_code == 400
    assert "sentiment" in answer.json()["error"]["message"]


def test_O47_openai_embeddings_under_the_proxy(base_url: str) -> None:
    answer = post(f"{base_url}/models/minilm/proxy/v1/embeddings", {"model": "m", "input": "x"}).json()
    assert len(answer["data"][0]["embedding"]) == 384
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 3
