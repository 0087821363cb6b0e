"""Whatever JSON comes in, a facade answers it, or with an error of its family that is the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.rest.v1 import oicm_pb2, openai_pb2, tei_pb2, vllm_pb2
from headrace.server.services.oicm import OicmService
from headrace.server.services.openai import OpenaiService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.vllm_pooling import VllmPoolingService
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

KEYS = [
    "inputs", "input", "texts", "query", "documents", "text", "truncate", "truncation_direction",
    "dimensions", "normalize", "prompt_name", "raw_scores", "return_text", "top_k", "top_n",
    "encoding_format", "model", "data", "instances", "dataframe_split", "dataframe_records", "columns", "x",
    "messages", "queries", "items", "data_1", "data_2", "text_1", "text_2", "role", "content", "task",
    "embed_dtype", "endianness", "input_type", "embedding_types", "images", "output_dimension", "max_tokens",
    "truncate_prompt_tokens", "max_tokens_per_doc", "chat_template", "zzz",
]  # fmt: skip
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 80)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[]), max_size=6)
    | st.sampled_from(["good", "Left", "base64", "bytes", "fp8_e5m2", "big", "embed", "END", "int8"])
    | st.sampled_from(["e", "c", "r", "-", "a b c " * 9])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
likely = st.fixed_dictionaries(
    {}, optional={key: values | st.lists(st.text(max_size=4), max_size=3) for key in KEYS}
)
MESSAGES = {
    "Embed": tei_pb2.TeiServiceEmbedRequest,
    "Rerank": tei_pb2.TeiServiceRerankRequest,
    "Predict": tei_pb2.TeiServicePredictRequest,
    "CreateEmbedding": openai_pb2.OpenaiServiceCreateEmbeddingRequest,
    "Classify": oicm_pb2.OicmServiceClassifyRequest,
    "Score": vllm_pb2.VllmPoolingServiceScoreRequest,
    "Pooling": vllm_pb2.VllmPoolingServicePoolingRequest,
    "CohereEmbed": vllm_pb2.VllmPoolingServiceCohereEmbedRequest,
}


def service(rpc: str, repository: Any, tokenizing: Tokenizing) -> Any:
    pooling = PoolingRequests(repository, tokenizing, ChatTemplates())
    if rpc == "CreateEmbedding":
        return OpenaiService(repository, pooling)
    if rpc == "Classify":
        return OicmService(repository, tokenizing, pooling)
    if rpc in ("Score", "Pooling", "CohereEmbed"):
        return VllmPoolingService(pooling)
    return TeiService(TeiRequests(repository, tokenizing), pooling)


fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("rpc", MESSAGES)
@settings(fuzzed, max_examples=80)
@given(body=values | likely, model=st.sampled_from(["", "e", "c", "r", "nope"]))
def test_any_json(
    rpc: str,
    body: Any,
    model: str,
    runner: asyncio.Runner,
    own_repository: Any,
    rest: Any,
    tokenizing: Tokenizing,
) -> None:
    facade = rest(service(rpc, own_repository, tokenizing))
    headers = {"x-headrace-model": model} if model else {}
    found = runner.run(facade.post(rpc, MESSAGES[rpc], body, headers))
    assert found.status == 200 or 400 <= found.status < 429, found.json
    assert found.status == 200 or found.json["error"]


@pytest.mark.parametrize("rpc", MESSAGES)
@settings(fuzzed, max_examples=40)
@given(body=st.binary(max_size=40))
def test_any_bytes(
    rpc: str, body: bytes, runner: asyncio.Runner, own_repository: Any, rest: Any, tokenizing: Tokenizing
) -> None:
    facade = rest(service(rpc, own_repository, tokenizing))
    status = runner.run(facade.post(rpc, MESSAGES[rpc], body)).status
    assert status == 200 or 400 <= status < 429
