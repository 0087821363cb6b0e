"""``POST /`` and Text Embeddings Inference with encoders that the demo does not have: SPLADE, re-rankers."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from rest_call import Context, post_streamed

from headrace.rest.v1 import endpoint_pb2, openai_pb2
from headrace.rest.v1 import tei_pb2 as pb
from headrace.server.codecs.tei import error_json
from headrace.server.codecs.tei_info import EncoderInfo
from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.errors import InvalidArgumentError, TaskNotSupportedError
from headrace.server.repository.config import parse_text
from headrace.server.repository.model import Task
from headrace.server.services.call import Call
from headrace.server.services.endpoint import EndpointService
from headrace.server.services.openai import OpenaiService
from headrace.server.services.openai_routes import OpenaiRoutes
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_embed import TeiEmbedService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.tei_vectors import TeiVectorsService
from headrace.server.services.tgi_requests import TgiRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.tei.v1 import tei_pb2


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
            PoolingRequests(repository, tokenizing, ChatTemplates()),
            EncoderInfo(8, 4, 2),
            queue_size=3,
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


async def test_a_request_does_not_fill_the_queue_for_its_own_instances(endpoint: Any) -> None:
    answer = await predict(endpoint, "full", *[{"inputs": f"text {number}"} for number in range(10)])
    assert (answer.status, len(answer.json.get("predictions", []))) == (200, 10)


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


async def test_sparse_weights_are_scaled_nowhere(
    repository: Any, tokenizing: Tokenizing, encoding: TeiRequests, rest: Any, reference: Any
) -> None:
    error = "`normalize` is not available for SPLADE models"
    service = TeiEmbedService(repository, tokenizing, "cpu")
    call = Call(Context({"x-headrace-model": "s"}), "test")  # type: ignore[arg-type]
    for scaled in (None, True):
        with pytest.raises(TaskNotSupportedError, match=error) as refused:
            await service.Embed(tei_pb2.EmbedRequest(inputs="good", normalize=scaled), call)
        assert service.grpc_status(refused.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    raw = await service.Embed(tei_pb2.EmbedRequest(inputs="good", normalize=False), call)
    np.testing.assert_allclose(raw.embeddings, reference("good")["embedding"], atol=1e-6)

    pooling = PoolingRequests(repository, tokenizing, ChatTemplates())
    message = openai_pb2.OpenaiServiceCreateEmbeddingRequest
    openai = rest(OpenaiService(repository, pooling))
    body = {"input": "good", "model": "s"}
    answer = await openai.post("CreateEmbedding", message, body)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(error)
    plain = await openai.post("CreateEmbedding", message, body | {"use_activation": False})
    np.testing.assert_allclose(plain.json["data"][0]["embedding"], raw.embeddings, atol=1e-6)


def keep(repository: Any, *names: str) -> None:
    """Leave only some of the models."""
    for name in set(repository.entries) - set(names):
        del repository.entries[name]


@pytest.mark.parametrize("options", [
    {"truncate": True}, {"truncation_direction": "Left"}, {"normalize": True}, {"raw_scores": False},
])  # fmt: skip
@pytest.mark.parametrize("name", ["e", "c", "r"])
async def test_the_loaded_kind_answers(endpoint: Any, repository: Any, name: str, options: Any) -> None:
    """What an option is for chooses between models; a server of one kind ignores it, as TEI does."""
    keep(repository, name)
    body = {"inputs": "good", **options}
    message = endpoint_pb2.EndpointServicePredictInstancesRequest
    answer = await endpoint.post("PredictInstances", message, {"instances": [body]})
    assert answer.status == 200
    assert answer.json == (await predict(endpoint, name, {"inputs": "good"})).json


async def invoke(endpoint: Any, body: Any, **headers: str) -> tuple[int, Any]:
    status, pieces, _, _ = await post_streamed(endpoint.service, "Invoke", body, headers=headers)
    return status, orjson.loads(b"".join(pieces))


@pytest.mark.parametrize(("name", "body", "route"), [
    ("e", {"input": ["good", "bad"]}, "embeddings"),
    ("c", {"input": ["good", "bad"]}, "classify"),
    ("r", {"query": "good", "documents": ["bad", "good"]}, "rank"),
    ("r", {"data_1": "good", "data_2": ["bad", "good"]}, "score"),
    ("e", {"text_1": "good", "text_2": ["bad", "good"], "inputs": None}, "score"),
])  # fmt: skip
async def test_invocations_of_vllms_bodies(
    endpoint: Any, repository: Any, tokenizing: Tokenizing, call: Call, name: str, body: Any, route: str
) -> None:
    pooling = PoolingRequests(repository, tokenizing, ChatTemplates())
    reply = await getattr(pooling, route)({**body, "model": name}, call)
    expected = orjson.loads(reply.body)
    part = "results" if route == "rank" else "data"
    named = await invoke(endpoint, {**body, "model": name})
    assert (named[0], named[1][part]) == (200, expected[part])
    keep(repository, name)
    default = await invoke(endpoint, body)
    assert (default[0], default[1][part]) == (200, expected[part])


async def test_invocations_of_vllms_bodies_fail_in_its_form(endpoint: Any) -> None:
    for body, status in (
        ({"input": [], "model": "e"}, 400),
        ({"input": "a", "model": "nope"}, 404),
        ({"query": "a", "documents": []}, 400),
    ):
        found, error = await invoke(endpoint, body)
        assert (found, error["error"]["code"]) == (status, status)


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


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ('default_model_filename: "model.onnx"', "float32"),
        ('default_model_filename: "onnx/model_fp16.onnx"', "float16"),
        ('default_model_filename: "model_quint8_avx2.onnx"', "uint8"),
        ('default_model_filename: "model_qint8_arm64.onnx"', "int8"),
        ('default_model_filename: "model_quantized.onnx"', "int8"),
        ('default_model_filename: "model.safetensors"', "float32"),
        ('parameters { key: "dtype" value: { string_value: "bfloat16" } }', "bfloat16"),
    ],
)
async def test_info_says_what_was_loaded(repository: Any, text: str, dtype: str) -> None:
    model = dataclasses.replace(repository.text("e", Task.EMBED), config=parse_text(text, "e"))
    assert EncoderInfo(8, 4, 2).describe(model)["model_dtype"] == dtype


async def test_info_of_sparse_vectors(repository: Any) -> None:
    model = repository.text("s", Task.EMBED, pooling="splade_sum_log1p")
    assert EncoderInfo(8, 4, 2).describe(model)["model_type"] == {"embedding": {"pooling": "splade"}}


async def test_errors_before_a_model_is_known(endpoint: Any) -> None:
    """The URL's model decides the family; without one it is Text Generation Inference."""
    message = endpoint_pb2.EndpointServicePredictInstancesRequest
    at_encoder = await endpoint.post("PredictInstances", message, b"{", {"x-headrace-model": "e"})
    nowhere = await endpoint.post("PredictInstances", message, b"{")
    assert (at_encoder.json["error_type"], nowhere.json["error_type"]) == ("Validation", "validation")
