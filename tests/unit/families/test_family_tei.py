"""Text Embeddings Inference over REST: shapes, input unions, statuses and texts of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from headrace.rest.v1 import tei_pb2 as pb
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

LABELS = ("negative", "neutral", "positive")
INVALID = "Input validation error"
OICM = {"x-headrace-surface": "oicm"}


def on(model: str) -> dict[str, str]:
    """Headers of a request below ``/models/{model}/proxy``."""
    return {"x-headrace-model": model, **OICM}


@pytest.fixture
async def tei(repository: Any, tokenizing: Tokenizing, rest: Any) -> Any:
    repository.text("e", Task.EMBED, prompts={"query": "what is "}, max_tokens=8)
    repository.text("c", Task.CLASSIFY, labels=LABELS, max_tokens=8)
    repository.text("broken", Task.EMBED, fail=True)
    repository.text("full", Task.EMBED, max_queue=0)
    repository.tensors(
        "r", [ModelTensor("x", "FP64", (3,))], [ModelTensor("y", "FP64", (1,))],
        lambda arrays: {"y": arrays["x"].sum(1, keepdims=True)}, max_batch_size=4,
    )  # fmt: skip
    pooling = PoolingRequests(repository, tokenizing, ChatTemplates())
    return rest(TeiService(TeiRequests(repository, tokenizing, max_client_batch_size=4), pooling))


async def embed(tei: Any, body: Any, headers: Any = None) -> Any:
    return await tei.post("Embed", pb.TeiServiceEmbedRequest, body, headers)


async def rerank(tei: Any, body: Any, headers: Any = None) -> Any:
    return await tei.post("Rerank", pb.TeiServiceRerankRequest, body, headers)


async def predict(tei: Any, body: Any, headers: Any = None) -> Any:
    return await tei.post("Predict", pb.TeiServicePredictRequest, body, headers)


async def test_embed_always_answers_a_list_of_vectors(tei: Any, reference: Any) -> None:
    raw = reference("good")["embedding"]
    for body in ({"inputs": "good"}, {"inputs": ["good"]}, {"inputs": "good", "normalize": None, "zzz": 1}):
        (vector,) = (await embed(tei, body)).json
        np.testing.assert_allclose(vector, raw / np.linalg.norm(raw), atol=1e-6)
    (vector,) = (await embed(tei, {"inputs": "good", "normalize": False})).json
    np.testing.assert_allclose(vector, raw, atol=1e-6)
    (vector,) = (await embed(tei, {"inputs": "good", "dimensions": 4})).json
    assert len(vector) == 4


async def test_embed_takes_token_ids(tei: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("good bad").ids
    one, two = (await embed(tei, {"inputs": [ids, "good bad"]})).json
    assert one == two == (await embed(tei, {"inputs": ids})).json[0]


async def test_embed_prompts(tei: Any) -> None:
    with_prompt = await embed(tei, {"inputs": "paris", "prompt_name": "query"})
    assert with_prompt.json == (await embed(tei, {"inputs": "what is paris"})).json
    wrong = await embed(tei, {"inputs": "paris", "prompt_name": "x"})
    assert wrong.status == 422
    assert wrong.json["error"].startswith(
        "Input validation error: `default-prompt-name` is set to `x` but it was not found"
    )


async def test_embed_truncation(tei: Any) -> None:
    long = "good bad a b c good bad a b c"
    refused = await embed(tei, {"inputs": long, "truncate": False})
    assert refused.status == 422
    assert refused.json == {
        "error": "Input validation error: `inputs` must have less than 8 tokens. Given: 12",
        "error_type": "Validation",
    }
    for default in ({}, {"truncate": None}, {"truncate": True}):
        assert (await embed(tei, {"inputs": long, **default})).json == (
            await embed(tei, {"inputs": "good bad a b c good"})
        ).json
    left = await embed(tei, {"inputs": long, "truncation_direction": "Left"})
    assert left.json == (await embed(tei, {"inputs": "c good bad a b c"})).json


async def test_compute_headers(tei: Any) -> None:
    headers = (await embed(tei, {"inputs": ["good", "bad a"]})).headers
    assert headers["x-compute-characters"] == "9"
    assert headers["x-compute-tokens"] == "7"
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert headers[name].isdigit()


@pytest.mark.parametrize(("body", "status", "text", "kind"), [
    ({"inputs": []}, 400, "`inputs` cannot be empty", "Empty"),
    ({"inputs": ""}, 400, f"{INVALID}: `inputs` cannot be empty", "Empty"),
    ({"inputs": ["good", ""]}, 400, f"{INVALID}: `inputs` cannot be empty", "Empty"),
    ({"inputs": [[]]}, 400, f"{INVALID}: `inputs` cannot be empty", "Empty"),
    ({"inputs": ["a"] * 5}, 422, "batch size 5 > maximum allowed batch size 4", "Validation"),
    ({"inputs": "a", "dimensions": 0}, 422, f"{INVALID}: `dimensions` should be positive", "Validation"),
    ({"inputs": [99999]}, 422, None, "Validation"),
    ({"inputs": "a", "truncation_direction": "up"}, 422, None, "Validation"),
    ({"inputs": 5}, 422, "`inputs`: expected `str | array`, got `int`", "Validation"),
    ({}, 422, "`inputs` is missing", "Validation"),
    ([], 422, "the body: expected `object`, got `array`", "Validation"),
    (None, 422, None, "Validation"),
    (b"{", 400, None, "Validation"),
    (b"", 400, "the body is empty, expected JSON", "Validation"),
])  # fmt: skip
async def test_embed_errors(tei: Any, body: Any, status: int, text: str | None, kind: str) -> None:
    answer = await embed(tei, body)
    assert (answer.status, answer.json["error_type"]) == (status, kind)
    assert set(answer.json) == {"error", "error_type"}
    assert text is None or answer.json["error"] == text


async def test_the_models_own_failures(tei: Any) -> None:
    broken = await embed(tei, {"inputs": "a", "model": "broken"})
    assert (broken.status, broken.json) == (
        424,
        {"error": "Backend error: model says no", "error_type": "Backend"},
    )
    full = await embed(tei, {"inputs": ["a", "b"], "model": "full"})
    assert (full.status, full.json["error_type"], full.headers["retry-after"]) == (429, "Overloaded", "1")
    unknown = await embed(tei, {"inputs": "a"}, on("nope"))
    assert (unknown.status, unknown.json["error_type"]) == (404, "ModelNotFound")


async def test_the_url_chooses_the_model_before_the_body(tei: Any, repository: Any) -> None:
    repository.text("other", Task.EMBED, normalize=False)
    by_url = await embed(tei, {"inputs": "good", "model": "e"}, on("other"))
    by_body = await embed(tei, {"inputs": "good", "model": "other"})
    default = await embed(tei, {"inputs": "good", "model": "-"})
    assert by_url.json == by_body.json != default.json


async def test_a_model_of_another_task(tei: Any) -> None:
    plain = await embed(tei, {"inputs": "a", "model": "c"})
    assert (plain.status, plain.json["error_type"]) == (424, "Backend")
    oicm = await embed(tei, {"inputs": "a"}, on("c"))
    assert oicm.status == 400
    assert "'c'" in oicm.json["error"]


async def test_encoders_of_another_kind_only(tei: Any, repository: Any) -> None:
    """A server that has other encoders says what it is not; one that has none does not know the model."""
    entries = dict(repository.entries)

    def keep(*names: str) -> None:
        repository.entries.clear()
        repository.entries.update({name: entries[name] for name in names})

    keep("c")
    refused = await embed(tei, {"inputs": "a"})
    assert (refused.status, refused.json) == (
        424,
        {
            "error": "Backend error: Model is not an embedding model: model 'c' is for task classify, this "
            "request needs embed",
            "error_type": "Backend",
        },
    )
    assert (await embed(tei, {"inputs": "a", "model": "nope"})).status == 404
    keep("e")
    labels = await predict(tei, {"inputs": "a"})
    assert labels.status == 424
    assert labels.json["error"].startswith("Backend error: model is not a classifier model: model 'e' is for")
    keep("r")
    assert (await embed(tei, {"inputs": "a"})).status == 404


async def test_rerank(tei: Any) -> None:
    texts = ["banana", "paris is the capital", "berlin"]
    ranks = (await rerank(tei, {"query": "paris", "texts": texts})).json
    assert sorted(rank["index"] for rank in ranks) == [0, 1, 2]
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    assert ranks[0]["index"] == 1
    assert all(set(rank) == {"index", "score"} for rank in ranks)
    with_text = (await rerank(tei, {"query": "paris", "texts": texts, "return_text": True})).json
    assert [rank["text"] for rank in with_text] == [texts[rank["index"]] for rank in ranks]


@pytest.mark.parametrize(("body", "status", "text"), [
    ({"query": "a", "texts": []}, 400, "`texts` cannot be empty"),
    ({"query": "", "texts": ["a", ""]}, 400, f"{INVALID}: `inputs` cannot be empty"),
    ({"query": "a", "texts": ["a"] * 5}, 422, "batch size 5 > maximum allowed batch size 4"),
    ({"query": "a"}, 422, "`texts` is missing"),
    ({"texts": ["a"]}, 422, "`query` is missing"),
    ({"query": "a", "texts": "a"}, 422, "`texts`: expected `array`, got `str`"),
    ([], 422, "the body: expected `object`, got `array`"),
])  # fmt: skip
async def test_rerank_errors(tei: Any, body: Any, status: int, text: str) -> None:
    answer = await rerank(tei, body)
    assert (answer.status, answer.json["error"]) == (status, text)


async def test_predict_labels_text(tei: Any) -> None:
    single = (await predict(tei, {"inputs": "good"})).json
    assert {entry["label"] for entry in single} == set(LABELS)
    assert [entry["score"] for entry in single] == sorted((entry["score"] for entry in single), reverse=True)
    assert sum(entry["score"] for entry in single) == pytest.approx(1, abs=1e-5)
    assert (await predict(tei, {"inputs": ["good"]})).json == single
    pair = (await predict(tei, {"inputs": ["good", "bad"]})).json
    batch = (await predict(tei, {"inputs": [["good"], ["good", "bad"]]})).json
    assert batch == [single, pair]
    raw = (await predict(tei, {"inputs": "good", "raw_scores": True})).json
    assert [entry["label"] for entry in raw] == [entry["label"] for entry in single]
    assert sum(entry["score"] for entry in raw) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("body", "status"), [
    ({"inputs": ["a", "b", "c"]}, 422),
    ({"inputs": [["a", "b", "c"]]}, 422),
    ({"inputs": [["a"]] * 5}, 422),
    ({"inputs": ""}, 400),
    ({"inputs": ["", ""]}, 400),
    ({"inputs": [[""]]}, 400),
    ({"inputs": [["a"], "b"]}, 422),
])  # fmt: skip
async def test_predict_text_errors(tei: Any, body: Any, status: int) -> None:
    assert (await predict(tei, body)).status == status


async def test_predict_runs_classical_models(tei: Any) -> None:
    expected = {
        "data": [6.0, 15.0],
        "meta": {
            "input_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1, 3]}, "type": "tensor"}],
            "output_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1]}, "type": "tensor"}],
        },
    }
    for body in ([[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6], {"inputs": [[1, 2, 3], [4, 5, 6]]}):
        assert (await predict(tei, body)).json == expected
        assert (await predict(tei, body, on("r"))).json == expected
    many = (
        await predict(tei, [[index, 0, 0] for index in range(50)])
    ).json  # the model takes 4 rows at a time
    assert many["data"] == [float(index) for index in range(50)]


async def test_predict_chooses_by_the_kind_of_the_model(tei: Any) -> None:
    text_to_numbers = await predict(tei, {"inputs": "good"}, on("r"))
    assert text_to_numbers.status == 422
    assert "expected numbers for FP64, got 'good'" in text_to_numbers.json["error"]
    numbers_to_text = await predict(tei, [1, 2, 3], on("c"))
    assert numbers_to_text.status == 400
    assert numbers_to_text.json["error"] == 'model \'c\' classifies text, send {"inputs": "…"}'
    assert (await predict(tei, {"inputs": [[1]]}, on("c"))).status == 422
    assert (await predict(tei, {"inputs": "a"}, on("e"))).status == 400
    assert (await predict(tei, [1, 2])).status == 422


async def test_unexpected_failures_hide_their_text(tei: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(TeiRequests, "resolve", fail)
    answer = await embed(tei, {"inputs": "a"})
    assert answer.status == 500
    assert "secret" not in orjson.dumps(answer.json).decode()
