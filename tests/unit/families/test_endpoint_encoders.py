"""``POST /`` and Text Embeddings Inference with encoders that the demo does not have: SPLADE, re-rankers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from headrace.rest.v1 import endpoint_pb2
from headrace.rest.v1 import tei_pb2 as pb
from headrace.server.codecs.tei import error_json
from headrace.server.codecs.tei_info import EncoderInfo
from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.services.endpoint import EndpointService
from headrace.server.services.openai_routes import OpenaiRoutes
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.tei_vectors import TeiVectorsService
from headrace.server.services.tgi_requests import TgiRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
async def encoding(repository: Any, tokenizing: Tokenizing) -> TeiRequests:
    repository.text("e", Task.EMBED, default_prompt="query", prompts={"query": "what is ", "none": ""})
    repository.text("s", Task.EMBED, pooling="splade")
    repository.text("c", Task.CLASSIFY, labels=("no", "yes"))
    repository.text("r", Task.RERANK, labels=("relevance",))
    repository.text("full", Task.EMBED, max_queue=3)
    return TeiRequests(repository, tokenizing, max_client_batch_size=4, compute_type="cuda")


@pytest.fixture
def tei(repository: Any, tokenizing: Tokenizing, encoding: TeiRequests, rest: Any) -> Any:
    return rest(TeiService(encoding, PoolingRequests(repository, tokenizing, ChatTemplates())))


@pytest.fixture
async def endpoint(repository: Any, tokenizing: Tokenizing, encoding: TeiRequests, rest: Any) -> Any:
    generating = Generating(tokenizing)
    return rest(
        EndpointService(
            repository,
            TgiRequests(repository, generating, TgiLimits(), "1"),
            encoding,
            OpenaiRoutes(repository, generating, "1"),
            EncoderInfo(8, 4, 2),
        )
    )


async def predict(endpoint: Any, model: str, *instances: Any) -> Any:
    """Answer instances: every one of them is what ``POST /`` would do with it."""
    return await endpoint.post(
        "PredictInstances",
        endpoint_pb2.EndpointServicePredictInstancesRequest,
        {"instances": instances},
        {"x-headrace-model": model},
    )


async def test_a_sparse_model_weighs_the_vocabulary(endpoint: Any, encoding: TeiRequests, rest: Any) -> None:
    (row,) = (await predict(endpoint, "s", {"inputs": "good"})).json["predictions"]
    vectors = rest(TeiVectorsService(encoding))
    body = {"inputs": "good", "model": "s"}
    plain = await vectors.post("EmbedSparse", pb.TeiVectorsServiceEmbedSparseRequest, body)
    assert row == plain.json
    assert [entry["index"] for entry in row[0]] == sorted(entry["index"] for entry in row[0])


async def test_what_sparse_models_do_not_do(encoding: TeiRequests, tei: Any, rest: Any) -> None:
    body = {"inputs": "good", "model": "s"}
    tokens = await rest(TeiVectorsService(encoding)).post(
        "EmbedAll", pb.TeiVectorsServiceEmbedAllRequest, body
    )
    assert (tokens.status, tokens.json) == (
        424,
        {"error": "Backend error: `embed_all` is not available for SPLADE models", "error_type": "Backend"},
    )
    for scaled in ({}, {"normalize": True}, {"normalize": None}):
        refused = await tei.post("Embed", pb.TeiServiceEmbedRequest, body | scaled)
        assert refused.status == 424
        assert refused.json["error"].startswith(
            "Backend error: `normalize` is not available for SPLADE models"
        )
    dense = await tei.post("Embed", pb.TeiServiceEmbedRequest, body | {"normalize": False})
    assert dense.status == 200


async def test_a_reranker_ranks_and_labels(endpoint: Any, reference: Any) -> None:
    texts = ["bad", "good"]
    answer = await predict(endpoint, "r", {"query": "a", "texts": texts, "raw_scores": True}, {"inputs": "a"})
    ranks, labels = answer.json["predictions"]
    logits = [reference(("a", text))["logits"][0] for text in texts]
    assert [rank["index"] for rank in ranks] == list(np.argsort(logits)[::-1])
    assert [rank["score"] for rank in ranks] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)
    assert [entry["label"] for entry in labels] == ["relevance"]
    refused = await predict(endpoint, "r", {"text": "a"})
    assert refused.status == 422
    assert '{"query": "…", "texts": ["…"]}' in refused.json["error"]


@pytest.mark.parametrize(
    ("function", "compute"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum()),
        ("none", lambda x: x),
    ],
)
async def test_function_to_apply(endpoint: Any, reference: Any, function: str, compute: Any) -> None:
    logits = reference("good")["logits"][:2]
    parameters = {"function_to_apply": function, "top_k": 1}
    answer = await predict(endpoint, "c", {"inputs": "good", "parameters": parameters})
    (((best,),),) = answer.json["predictions"]
    assert best["label"] == ("no", "yes")[int(np.argmax(logits))]
    assert best["score"] == pytest.approx(compute(logits).max(), abs=1e-5)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 0},
        {"top_k": 0, "function_to_apply": "softmax"},
        {"function_to_apply": "tanh"},
        {"top_k": "1"},
    ],
)
async def test_illegal_options_of_a_pipeline(endpoint: Any, parameters: Any) -> None:
    answer = await predict(endpoint, "c", {"inputs": "good", "parameters": parameters})
    assert (answer.status, answer.json["error_type"]) == (422, "Validation")


async def test_prompts(tei: Any) -> None:
    """The default prompt applies; a named one replaces it; an unknown one is refused with the known names."""

    async def embed(**body: Any) -> Any:
        return await tei.post("Embed", pb.TeiServiceEmbedRequest, {"model": "e", **body})

    prompted = (await embed(inputs="good")).json
    assert prompted == (await embed(inputs="what is good", prompt_name="none")).json
    assert prompted == (await embed(inputs="good", prompt_name="query")).json
    assert (await embed(inputs="good", prompt_name="nope")).json["error"] == (
        "Input validation error: `default-prompt-name` is set to `nope` but it was not found in the Sentence "
        'Transformers prompts. Available prompts: ["query", "none"]'
    )


async def test_a_client_batch_is_one_admission(tei: Any, repository: Any) -> None:
    """Its parts are queued all or none: a batch that does not fit leaves the room to others."""
    instance = repository.instances["full"]
    instance.open = False

    async def embed(*inputs: str) -> Any:
        return await tei.post("Embed", pb.TeiServiceEmbedRequest, {"inputs": inputs, "model": "full"})

    running = asyncio.ensure_future(embed("a"))
    while not instance.held:
        await asyncio.sleep(0)
    waiting = asyncio.ensure_future(embed("a", "b"))
    while repository.resolve("full").waiting < 2:
        await asyncio.sleep(0)
    refused = await embed("a", "b")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.json == {"error": "Model is overloaded", "error_type": "Overloaded"}
    last = asyncio.ensure_future(embed("c"))
    while repository.resolve("full").waiting < 3:
        await asyncio.sleep(0)
    instance.open = True
    instance.finish(instance.held[0])
    assert [answer.status for answer in await asyncio.gather(running, waiting, last)] == [200] * 3


async def test_compute_type(tei: Any) -> None:
    body = {"inputs": "good", "model": "e"}
    answer = await tei.post("Embed", pb.TeiServiceEmbedRequest, body)
    assert answer.headers["x-compute-type"] == "cuda"


def test_errors_of_the_tokenizer() -> None:
    error = InvalidArgumentError("tokenizer error no such piece", field="inputs")
    assert error_json(error, oicm=False) == (
        422, b'{"error":"tokenizer error no such piece","error_type":"Tokenizer"}',
    )  # fmt: skip


async def test_info_describes_the_model(endpoint: Any) -> None:
    request = endpoint_pb2.EndpointServiceInfoRequest
    default = await endpoint.call("Info", request())
    named = await endpoint.call("Info", request(model_id="r"))
    by_url = await endpoint.call("Info", request(model_id="e"), {"x-headrace-model": "r"})
    assert default.json["model_type"] == {"embedding": {"pooling": "mean"}}
    assert named.json["model_type"] == {
        "reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}
    }
    assert by_url.json == named.json


async def test_errors_before_a_model_is_known(endpoint: Any) -> None:
    """The URL's model decides the family; without one it is Text Generation Inference."""
    message = endpoint_pb2.EndpointServicePredictInstancesRequest
    at_encoder = await endpoint.post("PredictInstances", message, b"{", {"x-headrace-model": "e"})
    nowhere = await endpoint.post("PredictInstances", message, b"{")
    assert (at_encoder.json["error_type"], nowhere.json["error_type"]) == ("Validation", "validation")
