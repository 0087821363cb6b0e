"""One engine, many wires: the same inputs give the same numbers whichever way they come."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from headrace.v1 import (
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    ranking_pb2,
    ranking_pb2_grpc,
)

Vectors = NDArray[np.float32]
TEXTS = [
    "What is Deep Learning?",
    "Deep learning is a branch of machine learning built on neural networks.",
    "Bananas are rich in potassium.",
    "日本語のテキストも問題ありません。",
    "a",
]


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def post(url: str, body: Any) -> Any:
    answer = requests.post(url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def typed(server: Any, model: str, texts: list[str]) -> Vectors:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        answer = stub.Embed(embedding_pb2.EmbedRequest(model=model, texts=texts), timeout=60)
    return np.array([entry.values for entry in answer.embeddings], np.float32)


def openai(server: Any, model: str, texts: list[str]) -> Vectors:
    data = post(f"{server.url}/v1/embeddings", {"model": model, "input": texts})["data"]
    return np.array([entry["embedding"] for entry in data], np.float32)


def oicm(server: Any, model: str, texts: list[str]) -> Vectors:
    return np.array(post(f"{server.url}/models/{model}/proxy/v1/embed", {"inputs": texts}), np.float32)


def kserve(server: Any, model: str, texts: list[str]) -> Vectors:
    tensor = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    answer = post(f"{server.url}/v2/models/{model}/infer", {"inputs": [tensor]})
    output = answer["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


WIRES = {wire.__name__: wire for wire in (typed, openai, oicm, kserve)}


@pytest.mark.parametrize("model", ["minilm", "minilm-torch"])
def test_every_wire_gives_the_same_vectors(server: Any, model: str) -> None:
    expected = typed(server, model, TEXTS)
    assert expected.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    for name, wire in WIRES.items():
        np.testing.assert_allclose(wire(server, model, TEXTS), expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("wire", WIRES)
def test_a_batch_equals_its_texts_one_by_one(server: Any, wire: str) -> None:
    together = WIRES[wire](server, "minilm-torch", TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        np.testing.assert_allclose(WIRES[wire](server, "minilm-torch", [text])[0], row, atol=1e-5)


@pytest.fixture(scope="module")
def sentence_encoder(demo_repository: Path) -> Callable[[str], Vectors]:
    """The model run by transformers, text by text: mean over all tokens, scaled to length 1."""
    folder = demo_repository / "minilm-torch" / "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()

    def encode(text: str) -> Vectors:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0].numpy()
        mean = hidden.mean(0)
        scaled: Vectors = mean / np.linalg.norm(mean)
        return scaled

    return encode


@pytest.mark.slow
def test_vectors_are_those_of_transformers(server: Any, sentence_encoder: Callable[[str], Vectors]) -> None:
    expected = np.stack([sentence_encoder(text) for text in [*TEXTS, "word " * 600]])
    for model in ("minilm-torch", "minilm"):
        found = typed(server, model, [*TEXTS, "word " * 600])
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5, err_msg=model)


def test_classifiers_agree(server: Any, channel: grpc.Channel) -> None:
    texts = ["this is good!", "terrible, I want my money back"]
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    inputs = [classification_pb2.ClassificationInput(text=text) for text in texts]
    answer = stub.Classify(classification_pb2.ClassifyRequest(inputs=inputs), timeout=60)
    native = [{score.label: score.score for score in entry.scores} for entry in answer.classifications]
    listed = post(f"{server.url}/classify", {"inputs": texts})["classification"]
    predicted = post(f"{server.url}/predict", {"inputs": [[text] for text in texts]})
    for expected, oicm_row, tei_row in zip(native, listed, predicted, strict=True):
        assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
        for row in (oicm_row, tei_row):
            assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in row} == expected
            scores = [entry["score"] for entry in row]
            assert scores == sorted(scores, reverse=True)
    assert answer.classifications[0].scores[0].label == "positive"
    assert answer.classifications[1].scores[0].label == "negative"


RANKED = [
    "Bananas are rich in potassium.",
    "Paris is the capital and largest city of France.",
    "The Eiffel tower was built in 1889.",
    "Berlin is the capital of Germany.",
    "To reset your password, open settings and click 'forgot password'.",
]


@pytest.mark.parametrize(("query", "best"), [
    ("What is the capital of France?", 1),
    ("I forgot my login credentials", 4),
    ("good food source of minerals", 0),
    ("capital of Germany", 3),
])  # fmt: skip
@pytest.mark.parametrize("model", ["minilm", "minilm-torch"])
def test_rerankers_agree(server: Any, channel: grpc.Channel, model: str, query: str, best: int) -> None:
    stub = ranking_pb2_grpc.RankingServiceStub(channel)
    answer = stub.Rerank(ranking_pb2.RerankRequest(model=model, query=query, texts=RANKED), timeout=60)
    assert answer.ranks[0].index == best
    scores = [rank.score for rank in answer.ranks]
    assert scores == sorted(scores, reverse=True)
    listed = post(f"{server.url}/models/{model}/proxy/rerank", {"query": query, "texts": RANKED})
    assert [rank["index"] for rank in listed] == [rank.index for rank in answer.ranks]
    np.testing.assert_allclose([rank["score"] for rank in listed], scores, atol=1e-5)


def test_classical_models_agree(server: Any, channel: grpc.Channel) -> None:
    rows = np.linspace(-0.1, 0.1, 40).reshape(4, 10)
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)
    tensor = common_pb2.Tensor(name="features", datatype="FP64", shape=rows.shape, raw=rows.tobytes())
    answer = stub.Predict(prediction_pb2.PredictRequest(model="diabetes", inputs=[tensor]), timeout=60)
    expected = np.frombuffer(answer.outputs[0].raw, np.float64)
    mlflow = post(f"{server.url}/models/diabetes/proxy/v1/predict", rows.tolist())
    np.testing.assert_allclose(mlflow["data"], expected, rtol=1e-12)
    kserve_body = {
        "inputs": [{"name": "features", "shape": [4, 10], "datatype": "FP64", "data": rows.ravel().tolist()}]
    }
    output = post(f"{server.url}/v2/models/diabetes/infer", kserve_body)["outputs"][0]
    np.testing.assert_allclose(output["data"], expected, rtol=1e-12)


def test_more_rows_than_one_batch(server: Any) -> None:
    rows = np.linspace(-0.1, 0.1, 25_000).reshape(2500, 10)  # the model takes 1024 at a time
    answer = post(f"{server.url}/models/diabetes/proxy/predict", {"inputs": rows.tolist()})
    few = post(f"{server.url}/models/diabetes/proxy/predict", rows[2490:].tolist())
    assert len(answer["data"]) == 2500
    np.testing.assert_allclose(answer["data"][2490:], few["data"], rtol=1e-9)


def test_long_batches_of_texts(server: Any) -> None:
    texts = [f"text number {index}" for index in range(700)]
    answer = requests.post(f"{server.url}/v1/embeddings", json={"input": texts}, timeout=110)
    assert answer.status_code == 200, answer.text
    data = json.loads(answer.content)["data"]
    assert [entry["index"] for entry in data] == list(range(700))
    vectors = np.array([entry["embedding"] for entry in data], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert len({row.tobytes() for row in vectors}) > 600
