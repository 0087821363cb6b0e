"""Text Embeddings Inference where the kind of the model decides: who ranks, who weighs words, what counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from rest_call import Context

from headrace.rest.v1 import tei_pb2 as pb
from headrace.server.codecs import tei_messages
from headrace.server.codecs.http_headers import cost_headers
from headrace.server.codecs.tei_info import EncoderInfo
from headrace.server.errors import (
    InputEmptyError,
    InvalidArgumentError,
    ModelNotFoundError,
    TaskNotSupportedError,
    UnauthenticatedError,
)
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.services.call import Call
from headrace.server.services.ops import OpsService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_embed import TeiEmbedService
from headrace.server.services.tei_models import ranks
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.tei_text import TeiRerankService
from headrace.server.services.tei_vectors import TeiVectorsService
from headrace.server.tasks.batching import USUAL
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.embed import EmbedOptions
from headrace.server.tasks.infer_text import infer_text
from headrace.server.tasks.similarity import similarities
from headrace.server.tasks.tensors import InputTensor
from headrace.server.tasks.text_tokens import decode
from headrace.server.tasks.tokenization import Tokenizing
from headrace.tei.v1 import tei_pb2


@pytest.fixture
def tei(repository: Any, tokenizing: Tokenizing, rest: Any) -> Any:
    requests = TeiRequests(repository, tokenizing)
    return rest(TeiService(requests, PoolingRequests(repository, tokenizing, ChatTemplates())))


def call_of(model: str = "") -> Call:
    return Call(Context({"x-headrace-model": model} if model else {}), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "fields"), [
    (Task.EMBED, {"pooling": "splade"}),
    (Task.EMBED, {"pools_inside": True}),
    (Task.CLASSIFY, {"labels": ("a", "b", "c")}),
])  # fmt: skip
async def test_models_that_do_not_rank(
    repository: Any, tokenizing: Tokenizing, tei: Any, task: Task, fields: Any
) -> None:
    model = repository.text("m", task, **fields)
    assert not ranks(model)
    answer = await tei.post("Rerank", pb.TeiServiceRerankRequest, {"query": "a", "texts": ["b"]})
    assert (answer.status, answer.json["error_type"]) == (424, "Backend")
    assert answer.json["error"].startswith("Backend error: model is not a re-ranker model: model 'm'")
    request = tei_pb2.RerankRequest(query="a", texts=["b"])
    with pytest.raises(TaskNotSupportedError) as refused:
        await TeiRerankService(repository, tokenizing, 4, "cpu").Rerank(request, call_of())
    assert tei_messages.status(refused.value)[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_model_that_pools_inside_has_no_vectors_of_tokens(
    repository: Any, tokenizing: Tokenizing, rest: Any
) -> None:
    repository.text("m", Task.EMBED, pools_inside=True)
    vectors = rest(TeiVectorsService(TeiRequests(repository, tokenizing)))
    answer = await vectors.post("EmbedAll", pb.TeiVectorsServiceEmbedAllRequest, {"inputs": "a"})
    assert (answer.status, answer.json["error_type"]) == (424, "Backend")
    assert "it gives no vectors of tokens" in answer.json["error"]


async def test_sparse_vectors_are_asked_of_a_sparse_model(
    repository: Any, tokenizing: Tokenizing, rest: Any
) -> None:
    """The family's clients cannot name one."""
    repository.text("dense", Task.EMBED)
    repository.text("sparse", Task.EMBED, pooling="splade")
    vectors = rest(TeiVectorsService(TeiRequests(repository, tokenizing)))
    asked = (pb.TeiVectorsServiceEmbedSparseRequest, {"inputs": "good"})
    assert (await vectors.post("EmbedSparse", *asked)).status == 200
    named = await vectors.post("EmbedSparse", *asked, {"x-headrace-model": "dense"})
    assert named.status == 424
    call = call_of()
    answer = await TeiEmbedService(repository, tokenizing, "cpu").EmbedSparse(
        tei_pb2.EmbedSparseRequest(inputs="good"), call
    )
    assert answer.sparse_embeddings
    assert call.model is not None
    assert call.model.name == "sparse"


@pytest.mark.parametrize("body", [{}, [], "x", 1, None, {"input": "x"}, {"instances": ["x"]}])
async def test_predict_of_a_wrong_shape(repository: Any, tei: Any, body: Any) -> None:
    repository.text("c", Task.CLASSIFY, labels=("a", "b", "c"))
    answer = await tei.post("Predict", pb.TeiServicePredictRequest, body)
    assert (answer.status, answer.json["error_type"]) == (422, "Validation")
    assert 'send {"inputs": "…"}' in answer.json["error"]


async def test_a_cross_encoder_reads_the_query_with_every_text(
    repository: Any, tokenizing: Tokenizing, tei: Any
) -> None:
    """Characters are counted as tokens are: of what the model reads."""
    repository.text("r", Task.RERANK, labels=("relevance",))
    body = {"query": "good", "texts": ["bad", "a", "what is"]}
    headers = (await tei.post("Rerank", pb.TeiServiceRerankRequest, body)).headers
    assert headers["x-compute-characters"] == str(3 * 4 + 3 + 1 + 7)
    assert headers["x-compute-tokens"] == str(3 * (1 + 3) + 1 + 1 + 2)
    answer = await TeiRerankService(repository, tokenizing, 4, "cpu").Rerank(
        tei_pb2.RerankRequest(query="good", texts=["bad", "a", "what is"]), call_of()
    )
    assert answer.metadata.compute_chars == 3 * 4 + 3 + 1 + 7


def test_the_time_of_computing_is_the_whole_time() -> None:
    headers = cost_headers(
        "cpu", 1, 1, total_ns=9_000_000, tokenization_ns=1_000_000, queue_ns=2_000_000, inference_ns=3_000_000
    )
    assert dict(headers)["x-compute-time"] == dict(headers)["x-total-time"] == "9"
    assert dict(headers)["x-inference-time"] == "3"


async def test_ids_above_the_number_of_tokens_are_decoded(tokenizing: Tokenizing) -> None:
    """A vocabulary may have gaps."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 90}, "[UNK]"))
    settings: Any = SimpleNamespace(tokenizer=tokenizer)
    assert await decode(tokenizing, settings, [[90]], skip_special_tokens=True) == ["good"]
    with pytest.raises(InvalidArgumentError, match="token id 91 is out of vocabulary"):
        await decode(tokenizing, settings, [[90, 91]], skip_special_tokens=True)


async def test_similarity_is_at_most_one(
    repository: Any, tokenizing: Tokenizing, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.server.tasks import similarity

    async def embedded(*_: Any) -> Any:
        vectors = np.array([[1.0000001], [1.0], [-1.0]], np.float32)
        return SimpleNamespace(vectors=vectors, token_counts=[1] * 3, timings=None)

    monkeypatch.setattr(similarity, "embed", embedded)
    model = repository.text("e", Task.EMBED)
    values, _, _ = await similarities(tokenizing, model, "a", ["a", "b"], EmbedOptions())
    assert values.tolist() == [1.0, -1.0]


async def test_info_names_labels_as_predict_does(repository: Any) -> None:
    model = repository.text("c", Task.CLASSIFY)
    model.outputs = (ModelTensor("scores", "FP32", (3,)),)
    names = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert EncoderInfo(8, 4, 2).describe(model)["model_type"]["classifier"]["id2label"] == names


def test_a_caller_without_a_key_reads_the_familys_words() -> None:
    error = UnauthenticatedError("no valid API key: send one of the server's keys")
    assert tei_messages.status(error) == (grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")


async def test_an_empty_element_of_a_tensor_is_named(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.text("e", Task.EMBED)
    tensor = InputTensor("text", "BYTES", (2, 1), b"\4\0\0\0good\0\0\0\0")
    with pytest.raises(InputEmptyError, match="element 1 of input 'text' for model 'e' is empty"):
        await infer_text(tokenizing, model, tensor, USUAL)


async def test_health_below_a_model_is_that_models(repository: Any) -> None:
    repository.text("e", Task.EMBED)
    service = OpsService(SimpleNamespace(), lambda: True, bytes, repository.resolve)  # type: ignore[arg-type]
    for name in ("", "e"):
        assert (await service.Health(pb.TeiServiceRerankRequest(), call_of(name))).status == 200
    with pytest.raises(ModelNotFoundError):
        await service.Health(pb.TeiServiceRerankRequest(), call_of("nope"))
