"""The OpenAI API over REST: embeddings, models, error objects."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import pytest

from headrace.rest.v1 import openai_pb2 as pb
from headrace.server.repository.lifecycle import VersionStatus
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.services.openai import OpenaiService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

PATH = {"x-envoy-original-path": "/v1/embeddings"}


@pytest.fixture
async def openai(repository: Any, tokenizing: Tokenizing, rest: Any) -> Any:
    repository.text("e", Task.EMBED, max_tokens=8)
    repository.text("c", Task.CLASSIFY, labels=("a", "b"))
    repository.text("full", Task.EMBED, max_queue=0)
    repository.text("broken", Task.EMBED, fail=True)
    repository.tensors("t", [ModelTensor("x", "FP32", (1,))], [ModelTensor("y", "FP32", (1,))], dict)
    return rest(OpenaiService(repository, PoolingRequests(repository, tokenizing, ChatTemplates())))


async def create(openai: Any, body: Any, headers: Any = None) -> Any:
    return await openai.post("CreateEmbedding", pb.OpenaiServiceCreateEmbeddingRequest, body, headers or PATH)


async def test_embeddings(openai: Any, reference: Any) -> None:
    answer = (await create(openai, {"input": ["good", "bad a"], "model": "e", "user": "u", "zzz": 1})).json
    assert answer["object"] == "list"
    assert answer["model"] == "e"
    assert answer["usage"] == {
        "prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None,
    }  # fmt: skip
    for index, (entry, text) in enumerate(zip(answer["data"], ["good", "bad a"], strict=True)):
        assert (entry["object"], entry["index"]) == ("embedding", index)
        raw = reference(text)["embedding"]
        np.testing.assert_allclose(entry["embedding"], raw / np.linalg.norm(raw), atol=1e-6)


async def test_base64_is_the_same(openai: Any) -> None:
    plain = (await create(openai, {"input": "good", "encoding_format": "float"})).json
    packed = (await create(openai, {"input": "good", "encoding_format": "base64"})).json
    vector = np.frombuffer(b64decode(packed["data"][0]["embedding"]), "<f4")
    assert np.array_equal(vector, np.array(plain["data"][0]["embedding"], np.float32))
    assert plain["usage"] == packed["usage"]


async def test_token_ids_and_dimensions(openai: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("good").ids
    text, one, listed = [
        (await create(openai, {"input": given, "dimensions": 3})).json for given in ("good", ids, [ids])
    ]
    assert text["data"] == one["data"] == listed["data"]
    assert len(text["data"][0]["embedding"]) == 3


async def test_long_inputs_are_cut(openai: Any) -> None:
    answer = (await create(openai, {"input": "good " * 50})).json
    assert answer["usage"]["prompt_tokens"] == 8


@pytest.mark.parametrize(("body", "param"), [
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["good", ""]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": ["a"] * 2049}, None),
    ({"input": None}, "input"),
    ({}, "input"),
    ({"input": "a", "encoding_format": "xml"}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 1.5}, "dimensions"),
    ({"input": {"text": "a"}}, "input"),
    ([], None),
    (b"{", None),
    (b"", None),
])  # fmt: skip
async def test_invalid_requests_are_400(openai: Any, body: Any, param: str | None) -> None:
    answer = await create(openai, body)
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert answer.json["message"] == error["message"]
    assert answer.json["code"] == 400
    assert answer.json["type"] in {"Validation", "Empty"}


async def test_messages_name_the_field_of_this_api(openai: Any) -> None:
    answer = await create(openai, {"input": [""]})
    assert answer.json["error"]["message"] == "`input` cannot be empty"


async def test_other_errors(openai: Any) -> None:
    unknown = await create(openai, {"input": "a", "model": "nope"})
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    task = await create(openai, {"input": "a", "model": "c"})
    assert (task.status, task.json["error"]["code"]) == (400, "task_not_supported")
    full = await create(openai, {"input": ["a", "b"], "model": "full"})
    assert (full.status, full.json["error"]["type"], full.headers["retry-after"]) == (
        429,
        "rate_limit_error",
        "1",
    )
    broken = await create(openai, {"input": "a", "model": "broken"})
    assert (broken.status, broken.json["error"]["type"]) == (500, "server_error")


async def test_models(openai: Any, repository: Any) -> None:
    answer = (await openai.call("ListModels", pb.OpenaiServiceListModelsRequest())).json
    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == ["broken", "c", "e", "full", "t"]
    card = answer["data"][2]
    assert {key: card[key] for key in ("object", "created", "root", "parent", "max_model_len")} == {
        "object": "model", "created": repository.created, "root": "e", "parent": None, "max_model_len": 8,
    }  # fmt: skip
    assert isinstance(card["owned_by"], str)
    assert card["permission"][0]["object"] == "model_permission"
    assert answer["data"][4]["max_model_len"] is None


async def test_every_listed_id_can_be_used(openai: Any, repository: Any) -> None:
    older = repository.entries["e"].generation.versions
    newer = repository.text("e", Task.EMBED, normalize=False)
    newer.version = 2
    repository.entries["e"].generation.versions = {**older, 2: VersionStatus.ready(newer)}
    cards = (await openai.call("ListModels", pb.OpenaiServiceListModelsRequest())).json["data"]
    assert {card["id"] for card in cards} >= {"e", "e@1"}
    for card in cards:
        one = await openai.call("GetModel", pb.OpenaiServiceGetModelRequest(model=card["id"]))
        assert one.json == card
    lengths = [
        np.linalg.norm((await create(openai, {"input": "good", "model": name})).json["data"][0]["embedding"])
        for name in ("e", "e@1", "e@2")
    ]
    assert lengths[1] == pytest.approx(1, abs=1e-5)
    assert lengths[0] == lengths[2] != pytest.approx(1, abs=1e-3)


async def test_unknown_models_are_404(openai: Any) -> None:
    answer = await openai.call("GetModel", pb.OpenaiServiceGetModelRequest(model="nope"))
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert set(answer.json) == {"error"}  # the top-level copy is for embeddings paths only


async def test_the_url_chooses_the_model(openai: Any) -> None:
    headers = {"x-headrace-model": "c"}
    answer = (await openai.call("ListModels", pb.OpenaiServiceListModelsRequest(), headers)).json
    assert [card["id"] for card in answer["data"]] == ["c"]
    assert (await create(openai, {"input": "a", "model": "e"}, {**headers, **PATH})).status == 400
    gone = await openai.call("ListModels", pb.OpenaiServiceListModelsRequest(), {"x-headrace-model": "nope"})
    assert gone.status == 404
