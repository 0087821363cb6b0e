"""``/rerank`` with ``documents``: the forms of vLLM, Jina and Cohere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.rest.v1 import tei_pb2
from headrace.server.repository.model import Task
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

TEXTS = ["banana", "paris is the capital", "berlin"]


@pytest.fixture
async def tei(repository: Any, tokenizing: Tokenizing, rest: Any) -> Any:
    repository.text("x", Task.RERANK, labels=("score",), max_tokens=9)
    repository.text("e", Task.EMBED, max_tokens=9)
    pooling = PoolingRequests(repository, tokenizing, ChatTemplates(), max_documents=6)
    return rest(TeiService(TeiRequests(repository, tokenizing), pooling))


async def rank(tei: Any, headers: Any = None, **body: Any) -> Any:
    given = {"model": "x", "query": "paris", "documents": TEXTS, **body}
    return await tei.post("Rerank", tei_pb2.TeiServiceRerankRequest, given, headers)


def scores(reference: Any, texts: list[str]) -> Any:
    return 1 / (1 + np.exp(-np.array([reference(("paris", text))["logits"][0] for text in texts])))


async def test_answer(tei: Any, reference: Any) -> None:
    answer = (await rank(tei)).json
    expected = scores(reference, TEXTS)
    assert [entry["index"] for entry in answer["results"]] == np.argsort(-expected).tolist()
    for entry in answer["results"]:
        assert entry["relevance_score"] == pytest.approx(expected[entry["index"]], abs=1e-5)
        assert entry["document"] == {"text": TEXTS[entry["index"]], "multi_modal": None}
    tokens = sum(len(reference(("paris", text))["ids"]) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == "x"
    assert answer["id"].startswith("rerank-")
    assert answer["meta"]["billed_units"]["search_units"] == 1  # what Cohere's clients read


@pytest.mark.parametrize(("given", "count"), [(1, 1), (2, 2), (0, 3), (None, 3), (9, 3), ("2", 2)])
async def test_top_n(tei: Any, given: Any, count: int) -> None:
    whole = (await rank(tei)).json["results"]
    assert (await rank(tei, top_n=given)).json["results"] == whole[:count]


@pytest.mark.parametrize(("given", "there"), [(True, True), (None, True), (False, False)])
async def test_return_documents(tei: Any, given: bool | None, there: bool) -> None:
    results = (await rank(tei, return_documents=given)).json["results"]
    assert all(("document" in entry) is there for entry in results)


@pytest.mark.parametrize("form", [
    lambda text: text,
    lambda text: {"text": text},
    lambda text: {"text": text, "id": 7},
    lambda text: {"content": [{"type": "text", "text": text}]},
    lambda text: {"content": text},
])  # fmt: skip
async def test_forms_of_documents(tei: Any, form: Any) -> None:
    plain = (await rank(tei)).json["results"]
    given = [form(text) for text in TEXTS]
    results = (await rank(tei, documents=given)).json["results"]
    for entry, expected in zip(results, plain, strict=True):
        assert entry["relevance_score"] == expected["relevance_score"]
        own = given[entry["index"]]
        assert entry["document"] == {"multi_modal": None, **(own if isinstance(own, dict) else {"text": own})}


async def test_one_document_and_a_query_of_parts(tei: Any, reference: Any) -> None:
    answer = (
        await rank(tei, documents="berlin", query={"content": [{"type": "text", "text": "paris"}]})
    ).json
    (entry,) = answer["results"]
    assert entry["relevance_score"] == pytest.approx(scores(reference, ["berlin"])[0], abs=1e-5)


async def test_rank_fields(tei: Any, reference: Any) -> None:
    given = [{"title": "good", "body": "bad", "zzz": "a"}]
    answer = (await rank(tei, documents=given, rank_fields=["title", "body"])).json
    expected = scores(reference, ["title: good\nbody: bad"])
    # 15 tokens are too many for the model, so Cohere's limit is needed as well
    assert answer["error"]["code"] == 400
    answer = (await rank(tei, documents=given, rank_fields=["title"], max_tokens_per_doc=99)).json
    assert answer["results"][0]["document"] == {"multi_modal": None, **given[0]}
    assert len(expected) == len(answer["results"])


async def test_use_activation_false_gives_logits(tei: Any, reference: Any) -> None:
    results = (await rank(tei, use_activation=False)).json["results"]
    for entry in results:
        logit = reference(("paris", TEXTS[entry["index"]]))["logits"][0]
        assert entry["relevance_score"] == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("model", ["x", "e"])
async def test_too_long(tei: Any, model: str) -> None:
    documents = ["a b c what is deep learning good bad banana"]
    refused = await rank(tei, model=model, documents=documents)
    assert refused.status == 400
    assert "Please reduce the length of the input prompt" in refused.json["error"]["message"]
    assert refused.json["error"]["type"] == "BadRequestError"
    for option in ({"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 9}, {"truncate": True}):
        cut = (await rank(tei, model=model, documents=documents, **option)).json
        assert cut["usage"]["prompt_tokens"] == (9 if model == "x" else 9 + 3)
    above = await rank(tei, model=model, documents=documents, truncate_prompt_tokens=10)
    assert "Please request a smaller truncation size." in above.json["error"]["message"]


@pytest.mark.parametrize("model", ["x", "e"])
async def test_max_tokens_per_doc(tei: Any, model: str) -> None:
    documents = ["a b c what is deep learning good bad banana"]
    cut = (await rank(tei, model=model, documents=documents, max_tokens_per_doc=2)).json
    same = (await rank(tei, model=model, documents=["a b"])).json
    assert cut["usage"] == same["usage"]
    assert cut["results"][0]["relevance_score"] == same["results"][0]["relevance_score"]


async def test_max_tokens_per_query(tei: Any) -> None:
    cut = (await rank(tei, query="paris berlin", max_tokens_per_query=1)).json
    assert cut["results"] == (await rank(tei)).json["results"]


@pytest.mark.parametrize(("body", "text", "param"), [
    ({"documents": []}, "`documents` cannot be empty", "documents"),
    ({"documents": [{}]}, "expected a string, or an object with `text`", "documents[0]"),
    ({"documents": [7]}, "expected a string, or an object with `text`", "documents[0]"),
    ({"documents": [{"image": "https://x"}]}, "other media are not read", "documents[0]"),
    ({"documents": {"content": [{"type": "image_url"}]}}, "'image_url' is not read", "documents"),
    ({"query": None}, "`query` is missing", "query"),
    ({"query": ""}, "`query` cannot be empty", "query"),
    ({"top_n": -1}, "`top_n` is -1, expected at least 0", "top_n"),
    ({"max_tokens_per_doc": -1}, "expected at least 0", "max_tokens_per_doc"),
    ({"documents": ["a"] * 7}, "batch size 7 > maximum allowed batch size 6", None),
])  # fmt: skip
async def test_errors_have_vllms_form(tei: Any, body: Any, text: str, param: str | None) -> None:
    answer = await rank(tei, **body)
    assert answer.status == 400
    error = answer.json["error"]
    assert text in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)


async def test_unknown_model_has_vllms_form(tei: Any) -> None:
    answer = await rank(tei, model="nope")
    assert (answer.status, answer.json["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank?x=/rerank"])
async def test_texts_stay_text_embeddings_inferences(tei: Any, path: str) -> None:
    headers = {"x-envoy-original-path": path}
    answer = await rank(tei, headers, texts=["a", "b"])
    assert {frozenset(entry) for entry in answer.json} == {frozenset({"index", "score"})}
    error = await rank(tei, headers, documents=None, texts=[])
    assert set(error.json) == {"error", "error_type"}
    null = (await rank(tei, headers, texts=None)).json
    assert null["results"] == (await rank(tei, headers)).json["results"]


@pytest.mark.parametrize(("body", "text"), [
    ({"query": "a"}, "`documents` is missing"),
    ({"query": "a", "texts": None, "documents": None}, "`documents` is missing"),
    ([], "not an object"),
    (b"{", "not valid JSON"),
])  # fmt: skip
async def test_the_path_decides_where_the_body_does_not(tei: Any, body: Any, text: str) -> None:
    async def error(path: str) -> Any:
        headers = {"x-envoy-original-path": path}
        return (await tei.post("Rerank", tei_pb2.TeiServiceRerankRequest, body, headers)).json

    for path in ("/v1/rerank", "/v2/rerank?a=b"):
        vllm = (await error(path))["error"]
        assert text in vllm["message"]
        assert vllm["code"] == 400
    assert (await error("/rerank"))["error_type"] == "Validation"
