"""Embedding and rerank clients against the server: OpenAI's, LangChain's, Cohere's, and others' bodies."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from running import ROOT

CLIENTS = ROOT / ".cache" / "clients" / "bin" / "python"
SCRIPTS = Path(__file__).parent / "clients"
DOCUMENTS = ["good food", "this is a terrible day", "paris is the capital of france"]
QUERY = "capital of france"


@pytest.fixture(scope="module")
def vectors(server: Any) -> Any:
    """The vectors of DOCUMENTS, as Text Embeddings Inference gives them."""
    answer = httpx.post(f"{server.url}/embed", json={"inputs": DOCUMENTS, "model": "minilm"})
    return np.array(answer.json(), np.float32)


@pytest.fixture(scope="module")
def ranked(server: Any) -> list[dict[str, Any]]:
    """The ranking of DOCUMENTS, as Text Embeddings Inference gives it."""
    body = {"query": QUERY, "texts": DOCUMENTS, "model": "minilm"}
    found: list[dict[str, Any]] = httpx.post(f"{server.url}/rerank", json=body).json()
    return found


def test_openai_asks_for_base64_and_takes_floats(server: Any, vectors: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        options: Any
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(model="minilm", input=DOCUMENTS, **options)
            given: list[Any] = [entry.embedding for entry in answer.data]
            found = [np.frombuffer(b64decode(one), "<f4") if isinstance(one, str) else one for one in given]
            np.testing.assert_allclose(found, vectors, atol=1e-6)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


async def test_openai_asynchronous_with_vllms_options(server: Any, vectors: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        answer = await client.embeddings.create(
            model="minilm",
            input=DOCUMENTS,
            dimensions=16,
            extra_body={"truncate_prompt_tokens": -1, "add_special_tokens": True, "priority": 0, "zzz": 1},
        )
    short = vectors[:, :16] / np.linalg.norm(vectors[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose([entry.embedding for entry in answer.data], short, atol=1e-6)


def test_openai_raw_bytes(server: Any, vectors: Any) -> None:
    """The client hands the body of ``bytes_only`` on when it is asked for the raw response."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.post(
            "/embeddings",
            body={"model": "minilm", "input": DOCUMENTS, "encoding_format": "bytes_only"},
            cast_to=httpx.Response,
        )
    np.testing.assert_allclose(np.frombuffer(answer.content, "=f4").reshape(3, -1), vectors, atol=1e-6)


def test_openai_too_long_is_cut_but_not_beyond_a_wish(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        cut = client.embeddings.create(model="minilm", input="word " * 1000)
        assert cut.usage.prompt_tokens == 256
        with pytest.raises(openai.BadRequestError, match="smaller truncation size"):
            client.embeddings.create(model="minilm", input="word", extra_body={"truncate_prompt_tokens": 257})


async def test_langchain_openai_embeddings(server: Any, vectors: Any) -> None:
    with httpx.Client() as client:
        async with httpx.AsyncClient() as other:
            embedder = OpenAIEmbeddings(
                model="minilm",
                base_url=f"{server.url}/v1",
                api_key=SecretStr("-"),
                check_embedding_ctx_length=False,
                tiktoken_enabled=False,
                http_client=client,
                http_async_client=other,
            )
            np.testing.assert_allclose(embedder.embed_documents(DOCUMENTS), vectors, atol=1e-6)
            np.testing.assert_allclose(await embedder.aembed_query(DOCUMENTS[0]), vectors[0], atol=1e-6)


def test_langchain_openai_token_ids(server: Any, vectors: Any) -> None:
    """By default it sends lists of token ids and asks for base64: here of the model's own vocabulary."""
    body = {"inputs": DOCUMENTS, "model": "minilm"}
    rows = httpx.post(f"{server.url}/tokenize", json=body).json()
    ids = [[token["id"] for token in row] for row in rows]
    asked = {"input": ids, "model": "minilm", "encoding_format": "base64"}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=asked).json()
    found = [np.frombuffer(b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_cohere(server: Any, ranked: list[dict[str, Any]]) -> None:
    asked = {"model": "minilm", "query": QUERY, "documents": DOCUMENTS}
    run = subprocess.run(
        [CLIENTS, SCRIPTS / "cohere_rerank.py", server.url, json.dumps(asked)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    best = [(entry["index"], pytest.approx(entry["score"], abs=1e-6)) for entry in ranked[:2]]
    for version in ("v1", "v1_objects", "v2", "v2_async"):
        assert [(entry["index"], entry["score"]) for entry in found[version]["results"]] == best
        assert found[version]["units"] == 1
    assert [entry["text"] for entry in found["v1"]["results"]] == [DOCUMENTS[index] for index, _ in best]
    assert [entry["text"] for entry in found["v1_objects"]["results"]] == [None, None]
    assert len(found["v2_limited"]["results"]) == 3
    assert found["missing"] == {"status": 404, "message": "The model `nope` does not exist."}
    assert found["empty"] == {"status": 400}


def test_cohere_embed(server: Any, vectors: Any) -> None:
    asked = {"model": "minilm", "texts": DOCUMENTS}
    run = subprocess.run(
        [CLIENTS, SCRIPTS / "cohere_embed.py", server.url, json.dumps(asked)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    for name in ("plain", "async", "inputs"):
        np.testing.assert_allclose(found[name]["float"], vectors, atol=1e-6)
        assert (found[name]["kind"], found[name]["version"]) == ("embeddings_by_type", "2")
        assert found[name]["tokens"] == found["plain"]["tokens"] > 0
    assert (found["plain"]["texts"], found["plain"]["int8"]) == (DOCUMENTS, None)
    np.testing.assert_allclose(found["first"]["rows"], vectors, atol=1e-6)
    assert (found["first"]["kind"], found["first"]["texts"]) == ("embeddings_floats", DOCUMENTS)
    short = vectors[:, :64] / np.linalg.norm(vectors[:, :64], axis=1, keepdims=True)
    every = found["every"]
    np.testing.assert_allclose(every["float"], short, atol=1e-6)
    np.testing.assert_allclose(
        [np.frombuffer(b64decode(row), "<f4") for row in every["base64"]], short, atol=1e-6
    )
    np.testing.assert_allclose(np.array(every["int8"]) / 127, short, atol=0.004)
    np.testing.assert_array_equal(np.array(every["int8"]) + 128, every["uint8"])
    np.testing.assert_array_equal(np.array(every["binary"]) + 128, every["ubinary"])
    assert np.shape(every["ubinary"]) == (3, 8)
    assert found["cut"]["tokens"] == 7
    assert found["missing"] == {"status": 404, "message": "The model `nope` does not exist."}
    assert found["images"] == {"status": 400, "message": "`images`: images are not read, only text"}
    assert "maximum context length is 256 tokens" in found["long"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_jina_shaped(server: Any, ranked: list[dict[str, Any]], path: str) -> None:
    documents = [{"text": text} for text in DOCUMENTS]
    body = {"model": "minilm", "query": QUERY, "top_n": 3, "documents": documents, "return_documents": True}
    answer = httpx.post(f"{server.url}{path}", json=body).json()
    assert [entry["index"] for entry in answer["results"]] == [entry["index"] for entry in ranked]
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[answer["results"][0]["index"]]
    assert answer["usage"]["total_tokens"] > 0


def test_llama_index_shaped_embeddings(server: Any, vectors: Any) -> None:
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    body = {"inputs": DOCUMENTS, "truncate": True}
    answer = httpx.post(f"{server.url}/models/minilm/proxy/embed", json=body, headers=headers).json()
    np.testing.assert_allclose(answer, vectors, atol=1e-6)


def test_llama_index_shaped_rerank(server: Any, ranked: list[dict[str, Any]]) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS}
    answer = httpx.post(
        f"{server.url}/models/minilm/proxy/rerank", json=body, headers={"Authorization": "raw"}
    ).json()
    assert len(answer) == len(DOCUMENTS)
    assert [entry["index"] for entry in answer] == [entry["index"] for entry in ranked]


def test_litellm_shaped_hosted_vllm_rerank(server: Any, ranked: list[dict[str, Any]]) -> None:
    body = {"model": "minilm", "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    results = httpx.post(f"{server.url}/rerank", json=body).json()["results"]
    assert [(entry["index"], entry["relevance_score"]) for entry in results] == [
        (entry["index"], pytest.approx(entry["score"], abs=1e-6)) for entry in ranked[:2]
    ]
    assert results[0]["document"]["text"] == DOCUMENTS[results[0]["index"]]


def test_litellm_shaped_huggingface_rerank(server: Any, ranked: list[dict[str, Any]]) -> None:
    body = {
        "query": QUERY, "texts": DOCUMENTS, "raw_scores": False, "truncation_direction": "Right",
        "return_text": True, "top_n": 2, "model": "minilm",
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/rerank", json=body).json()
    assert [entry["index"] for entry in answer] == [entry["index"] for entry in ranked]
    assert answer[0]["text"] == DOCUMENTS[answer[0]["index"]]


def test_litellm_shaped_embeddings(server: Any, vectors: Any) -> None:
    body = {"model": "minilm", "input": DOCUMENTS, "encoding_format": None, "user": None, "dimensions": None}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body).json()
    np.testing.assert_allclose([entry["embedding"] for entry in answer["data"]], vectors, atol=1e-6)
