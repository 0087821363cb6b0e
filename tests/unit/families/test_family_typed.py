"""The typed services: embedding, ranking, classification, prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.server.errors import (
    BatchTooLargeError,
    InputEmptyError,
    InputTooLongError,
    InvalidArgumentError,
    InvalidTensorError,
    TaskNotSupportedError,
)
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.services.call import Call
from headrace.server.services.classification import ClassificationService
from headrace.server.services.embedding import EmbeddingService
from headrace.server.services.prediction import PredictionService
from headrace.server.services.ranking import RankingService
from headrace.server.tasks.tokenization import Tokenizing
from headrace.v1 import classification_pb2, common_pb2, embedding_pb2, prediction_pb2, ranking_pb2

LABELS = ("negative", "neutral", "positive")
Embed = embedding_pb2.EmbedRequest


@pytest.fixture
async def models(repository: Any) -> Any:
    repository.text("e", Task.EMBED, prompts={"query": "what is "}, max_tokens=8)
    repository.text("c", Task.CLASSIFY, labels=LABELS)
    repository.tensors(
        "r", [ModelTensor("x", "FP32", (3,))],
        [ModelTensor("y", "FP32", (1,)), ModelTensor("n", "INT64", ())],
        lambda arrays: {
            "y": arrays["x"].sum(1, keepdims=True), "n": np.full(len(arrays["x"]), 7, np.int64)
        }, max_batch_size=4,
    )  # fmt: skip
    return repository


async def test_embed(models: Any, tokenizing: Tokenizing, call: Call, reference: Any) -> None:
    service = EmbeddingService(models, tokenizing)
    answer = await service.Embed(Embed(texts=["good", "bad a"]), call)
    for text, embedding in zip(["good", "bad a"], answer.embeddings, strict=True):
        raw = reference(text)["embedding"]
        np.testing.assert_allclose(embedding.values, raw / np.linalg.norm(raw), atol=1e-6)
    assert (answer.model, answer.model_version) == ("e", "1")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
    assert answer.timings.total_duration.ToNanoseconds() > 0
    assert answer.timings.inference_duration.ToNanoseconds() == 20
    assert call.model is not None


async def test_embed_options(
    models: Any, tokenizing: Tokenizing, call: Call, reference: Any, tokenizer: Any
) -> None:
    service = EmbeddingService(models, tokenizing)
    (raw,) = (await service.Embed(Embed(texts=["good"], normalize=False), call)).embeddings
    np.testing.assert_allclose(raw.values, reference("good")["embedding"], atol=1e-6)
    (cut,) = (await service.Embed(Embed(texts=["good"], dimensions=3), call)).embeddings
    assert len(cut.values) == 3
    ids = tokenizer.encode("good").ids
    by_ids = await service.Embed(Embed(token_ids=[common_pb2.TokenIds(ids=ids)], normalize=False), call)
    assert by_ids.embeddings[0] == raw
    prompted = await service.Embed(Embed(texts=["paris"], prompt_name="query"), call)
    assert prompted.embeddings == (await service.Embed(Embed(texts=["what is paris"]), call)).embeddings
    long = "good bad a b c good bad a b c"
    left = await service.Embed(
        Embed(texts=[long], truncation_direction=common_pb2.TRUNCATION_DIRECTION_LEFT), call
    )
    assert left.embeddings == (await service.Embed(Embed(texts=["c good bad a b c"]), call)).embeddings
    with pytest.raises(InputTooLongError):
        await service.Embed(Embed(texts=[long], truncate=False), call)


@pytest.mark.parametrize(("request_", "error"), [
    (Embed(), InputEmptyError),
    (Embed(texts=[""]), InputEmptyError),
    (Embed(token_ids=[common_pb2.TokenIds()]), InputEmptyError),
    (Embed(texts=["a"], token_ids=[common_pb2.TokenIds(ids=[1])]), InvalidArgumentError),
    (Embed(token_ids=[common_pb2.TokenIds(ids=[4_000_000_000])]), InvalidArgumentError),
    (Embed(token_ids=[common_pb2.TokenIds(ids=[1])], prompt_name="query"), InvalidArgumentError),
    (Embed(texts=["a"], dimensions=0), InvalidArgumentError),
    (Embed(texts=["a"], dimensions=17), InvalidArgumentError),
    (Embed(texts=["a"] * 2049), BatchTooLargeError),
    (Embed(texts=["a"], model="c"), TaskNotSupportedError),
])  # fmt: skip
async def test_embed_errors(
    models: Any, tokenizing: Tokenizing, call: Call, request_: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await EmbeddingService(models, tokenizing).Embed(request_, call)


async def test_rerank(models: Any, tokenizing: Tokenizing, call: Call) -> None:
    service = RankingService(models, tokenizing)
    texts = ["banana", "paris is the capital", "berlin"]
    answer = await service.Rerank(ranking_pb2.RerankRequest(query="paris", texts=texts), call)
    assert answer.ranks[0].index == 1
    assert sorted(rank.index for rank in answer.ranks) == [0, 1, 2]
    assert not any(rank.HasField("text") for rank in answer.ranks)
    assert all(0 <= rank.score <= 1 for rank in answer.ranks)
    assert answer.usage.prompt_tokens > 0
    best = await service.Rerank(
        ranking_pb2.RerankRequest(query="paris", texts=texts, top_n=1, return_text=True), call
    )
    assert [(rank.index, rank.text) for rank in best.ranks] == [(1, texts[1])]
    for empty in ({"query": "paris"}, {"texts": texts}):
        with pytest.raises(InputEmptyError):
            await service.Rerank(ranking_pb2.RerankRequest(**empty), call)
    with pytest.raises(BatchTooLargeError):
        await service.Rerank(ranking_pb2.RerankRequest(query="paris", texts=["a"] * 2049), call)
    with pytest.raises(InvalidArgumentError):
        await service.Rerank(ranking_pb2.RerankRequest(query="paris", texts=texts, top_n=0), call)
    with pytest.raises(TaskNotSupportedError):
        await service.Rerank(ranking_pb2.RerankRequest(query="paris", texts=texts, model="c"), call)


async def test_classify(models: Any, tokenizing: Tokenizing, call: Call, reference: Any) -> None:
    service = ClassificationService(models, tokenizing)
    inputs = [
        classification_pb2.ClassificationInput(text="good"),
        classification_pb2.ClassificationInput(text="good", text_pair="bad"),
    ]
    answer = await service.Classify(
        classification_pb2.ClassifyRequest(inputs=inputs, raw_scores=True, top_k=2), call
    )
    for text, found in zip(["good", ("good", "bad")], answer.classifications, strict=True):
        logits = reference(text)["logits"]
        order = np.argsort(-logits)[:2]
        assert [score.index for score in found.scores] == order.tolist()
        assert [score.label for score in found.scores] == [LABELS[index] for index in order]
        np.testing.assert_allclose([score.score for score in found.scores], logits[order], rtol=1e-4)
    probabilities = await service.Classify(classification_pb2.ClassifyRequest(inputs=inputs), call)
    for found in probabilities.classifications:
        assert sum(score.score for score in found.scores) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputEmptyError):
        await service.Classify(classification_pb2.ClassifyRequest(), call)


def tensor(values: Any, name: str = "x") -> common_pb2.Tensor:
    return common_pb2.Tensor(name=name, datatype="FP32", shape=values.shape, raw=values.tobytes())


async def test_predict(models: Any, tokenizing: Tokenizing, call: Call) -> None:
    service = PredictionService(models, tokenizing)
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    answer = await service.Predict(
        prediction_pb2.PredictRequest(inputs=[tensor(values)], include_signature=True), call
    )
    y, n = answer.outputs
    np.testing.assert_array_equal(np.frombuffer(y.raw, np.float32), values.sum(1))
    assert (list(y.shape), list(n.shape), n.datatype) == ([10, 1], [10], "INT64")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in answer.signature.outputs] == [
        ("y", "FP32", [-1, 1]), ("n", "INT64", [-1]),
    ]  # fmt: skip
    one = await service.Predict(
        prediction_pb2.PredictRequest(inputs=[tensor(values)], output_names=["n"]), call
    )
    assert [output.name for output in one.outputs] == ["n"]
    assert not one.HasField("signature")
    assert one.timings.total_duration.ToNanoseconds() > 0
    with pytest.raises(InvalidTensorError):
        await service.Predict(prediction_pb2.PredictRequest(inputs=[tensor(values, "z")]), call)


async def test_signature(models: Any, tokenizing: Tokenizing, call: Call) -> None:
    service = PredictionService(models, tokenizing)
    answer = await service.GetSignature(prediction_pb2.GetSignatureRequest(), call)
    assert (answer.model, answer.model_version) == ("r", "1")
    (spec,) = answer.signature.inputs
    assert (spec.name, spec.datatype, list(spec.shape), spec.optional) == ("x", "FP32", [-1, 3], False)
    named = await service.GetSignature(prediction_pb2.GetSignatureRequest(model="r@1"), call)
    assert named == answer
