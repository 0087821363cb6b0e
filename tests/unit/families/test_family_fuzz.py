"""Whatever JSON comes in, a facade answers it, or with an error of its family that is the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.rest.v1 import oicm_pb2, openai_pb2, tei_pb2
from headrace.server.services.oicm import OicmService
from headrace.server.services.openai import OpenaiService
from headrace.server.services.tei import TeiService
from headrace.server.tasks.tokenization import Tokenizing

KEYS = [
    "inputs", "input", "texts", "query", "documents", "text", "truncate", "truncation_direction",
    "dimensions", "normalize", "prompt_name", "raw_scores", "return_text", "top_k", "top_n",
    "encoding_format", "model", "data", "instances", "dataframe_split", "dataframe_records", "columns", "x",
    "zzz",
]  # fmt: skip
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 80)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[]), max_size=6)
    | st.sampled_from(["good", "Left", "base64", "e", "c", "r", "-", "a b c " * 9])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
likely = st.fixed_dictionaries(
    {}, optional={key: values | st.lists(st.text(max_size=4), max_size=3) for key in KEYS}
)
FACADES = {
    "Embed": (TeiService, tei_pb2.TeiServiceEmbedRequest),
    "Rerank": (TeiService, tei_pb2.TeiServiceRerankRequest),
    "Predict": (TeiService, tei_pb2.TeiServicePredictRequest),
    "CreateEmbedding": (OpenaiService, openai_pb2.OpenaiServiceCreateEmbeddingRequest),
    "Classify": (OicmService, oicm_pb2.OicmServiceClassifyRequest),
}


fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("rpc", FACADES)
@settings(fuzzed, max_examples=120)
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
    service, message = FACADES[rpc]
    facade = rest(service(own_repository, tokenizing))
    headers = {"x-headrace-model": model} if model else {}
    found = runner.run(facade.post(rpc, message, body, headers))
    assert found.status == 200 or 400 <= found.status < 429, found.json
    assert found.status == 200 or found.json["error"]


@pytest.mark.parametrize("rpc", FACADES)
@settings(fuzzed, max_examples=60)
@given(body=st.binary(max_size=40))
def test_any_bytes(
    rpc: str, body: bytes, runner: asyncio.Runner, own_repository: Any, rest: Any, tokenizing: Tokenizing
) -> None:
    service, message = FACADES[rpc]
    facade = rest(service(own_repository, tokenizing))
    status = runner.run(facade.post(rpc, message, body)).status
    assert status == 200 or 400 <= status < 429
