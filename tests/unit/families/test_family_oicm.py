"""``/classify`` of the Open Innovation Cluster Manager."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.rest.v1 import oicm_pb2 as pb
from headrace.server.repository.model import Task
from headrace.server.services.oicm import OicmService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

LABELS = ("negative", "neutral", "positive")


@pytest.fixture
async def oicm(repository: Any, tokenizing: Tokenizing, rest: Any) -> Any:
    repository.text("c", Task.CLASSIFY, labels=LABELS)
    repository.text("other", Task.CLASSIFY, labels=("yes", "no"))
    repository.text("e", Task.EMBED)
    pooling = PoolingRequests(repository, tokenizing, ChatTemplates())
    return rest(OicmService(repository, tokenizing, pooling))


async def classify(oicm: Any, body: Any, headers: Any = None) -> Any:
    return await oicm.post("Classify", pb.OicmServiceClassifyRequest, body, headers)


async def test_one_text_and_lists(oicm: Any) -> None:
    single = (await classify(oicm, {"inputs": "good"})).json
    assert set(single) == {"classification"}
    scores = [entry["score"] for entry in single["classification"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert {entry["label"] for entry in single["classification"]} == set(LABELS)
    batch = (await classify(oicm, {"inputs": ["good", "bad a"]})).json["classification"]
    assert batch[0] == single["classification"]
    assert len(batch) == 2


async def test_options(oicm: Any) -> None:
    best = (await classify(oicm, {"inputs": "good", "top_k": 1})).json["classification"]
    assert len(best) == 1
    raw = (await classify(oicm, {"inputs": "good", "raw_scores": True})).json["classification"]
    assert sum(entry["score"] for entry in raw) != pytest.approx(1, abs=1e-3)


async def test_models(oicm: Any) -> None:
    for body, headers in (
        ({"inputs": "good", "model": "other"}, None),
        ({"inputs": "good"}, {"x-headrace-model": "other"}),
    ):
        found = (await classify(oicm, body, headers)).json["classification"]
        assert {entry["label"] for entry in found} == {"yes", "no"}


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b"{", None, 400),
    ({}, None, 422),
    ({"inputs": 5}, None, 422),
    ({"inputs": ""}, None, 400),
    ({"inputs": []}, None, 400),
    ({"inputs": ["a"] * 2049}, None, 422),
    ({"inputs": "a", "top_k": 0}, None, 422),
    ({"inputs": "a"}, {"x-headrace-model": "e"}, 400),
    ({"inputs": "a"}, {"x-headrace-model": "nope"}, 404),
    ({"inputs": "a"}, {"oicm-request-timeout": "soon"}, 422),
])  # fmt: skip
async def test_errors(oicm: Any, body: Any, headers: Any, status: int) -> None:
    answer = await classify(oicm, body, headers)
    assert answer.status == status
    assert set(answer.json) == {"error", "error_type"}
