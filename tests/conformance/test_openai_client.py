"""The OpenAI Python client against the server: embeddings, models, exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from tokenizers import Tokenizer


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 unless it is told otherwise."""
    texts = ["What is Deep Learning?", "good"]
    packed = client.embeddings.create(model="minilm", input=texts)
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    assert packed.model == "minilm"
    assert [entry.index for entry in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 7 + 3
    for one, other in zip(packed.data, plain.data, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)


async def test_embeddings_of_the_async_client(server: Any, client: openai.OpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as other:
        found = await other.embeddings.create(model="minilm", input="What is Deep Learning?")
    expected = client.embeddings.create(model="minilm", input="What is Deep Learning?")
    np.testing.assert_allclose(found.data[0].embedding, expected.data[0].embedding, atol=1e-6)


def test_token_ids(client: openai.OpenAI, demo_repository: Any) -> None:
    tokenizer = Tokenizer.from_file(str(demo_repository / "minilm" / "1" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode("What is Deep Learning?").ids
    text = client.embeddings.create(model="minilm", input="What is Deep Learning?").data[0].embedding
    for given in (ids, [ids]):
        answer = client.embeddings.create(model="minilm", input=given)
        assert len(answer.data) == 1
        np.testing.assert_allclose(answer.data[0].embedding, text, atol=1e-6)


def test_dimensions(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model="minilm", input="good").data[0].embedding)
    short = client.embeddings.create(model="minilm", input="good", dimensions=64).data[0].embedding
    np.testing.assert_allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-6)


@pytest.mark.parametrize("model", ["minilm", "minilm@1", "", "-"])
def test_names_of_models(client: openai.OpenAI, model: str) -> None:
    assert client.embeddings.create(model=model, input="good").model == "minilm"


@pytest.mark.parametrize("options", [
    {"input": ""},
    {"input": []},
    {"input": [10_000_000]},
    {"input": "good", "dimensions": 385},
    {"input": "good", "extra_body": {"encoding_format": "xml"}},
    {"input": ["good"] * 2049},
    {"input": "good", "model": "sentiment"},
])  # fmt: skip
def test_bad_requests(client: openai.OpenAI, options: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "minilm", **options})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    body = caught.value.response.json()  # clients of Text Embeddings Inference read the top level
    assert body["code"] == 400
    assert body["message"] == body["error"]["message"]


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="nope", input="good")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_extra_fields_and_nulls(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="minilm", input="good", user="someone", extra_body={"dimensions": None, "zzz": {"a": 1}}
    )
    assert len(answer.data[0].embedding) == 384


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"minilm", "sentiment", "iris"} <= set(models)
    assert models["minilm"].object == "model"
    assert models["minilm"].created > 1_600_000_000
    assert client.models.retrieve("minilm") == models["minilm"]
    assert client.models.retrieve("minilm@1").id == "minilm@1"


def test_a_base_url_below_a_model(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/models/minilm-torch/proxy/v1", api_key="-") as client:
        assert [model.id for model in client.models.list()] == ["minilm-torch"]
        assert client.embeddings.create(model="whatever", input="good").model == "minilm-torch"
