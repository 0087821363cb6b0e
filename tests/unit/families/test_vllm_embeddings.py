"""vLLM's options of ``/v1/embeddings``: number formats, truncation, conversations."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import orjson
import pytest
from pooling_routes import CONVERSATION, TOO_LONG, Routes, counted, pooling_routes, unit

from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
async def post(repository: Any, tokenizing: Tokenizing, rest: Any) -> Routes:
    return pooling_routes(rest, repository, tokenizing)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("endianness", ["native", "little", "big", None])
async def test_embeddings_bytes(post: Routes, dtype: str, endianness: str | None) -> None:
    plain = (await post("embeddings", {"model": "e", "input": ["good", "bad"]})).json
    body = {"model": "e", "input": ["good", "bad"], "embed_dtype": dtype, "endianness": endianness}
    answer = await post("embeddings", {**body, "encoding_format": "bytes"})
    assert answer.content_type == "application/octet-stream"
    metadata = orjson.loads(answer.headers["metadata"])
    assert {"id", "created", "model", "data", "usage"} == set(metadata)
    assert metadata["usage"] == plain["usage"]
    size = len(answer.body) // 2
    for index, entry in enumerate(metadata["data"]):
        assert entry == {
            "index": index, "embed_dtype": dtype, "endianness": endianness or "native",
            "start": index * size, "end": (index + 1) * size, "shape": [16],
        }  # fmt: skip
        vector = decoded(answer.body[entry["start"] : entry["end"]], dtype, endianness or "native")
        tolerance = {"float32": 0, "float16": 1e-3, "bfloat16": 1e-2, "fp8_e4m3": 0.07, "fp8_e5m2": 0.13}[
            dtype
        ]
        np.testing.assert_allclose(
            vector, plain["data"][index]["embedding"], rtol=tolerance, atol=1e-7 + tolerance / 16
        )
    bare = await post("embeddings", {**body, "encoding_format": "bytes_only"})
    assert (bare.body, "metadata" in bare.headers) == (answer.body, False)
    packed = (await post("embeddings", {**body, "encoding_format": "base64"})).json
    assert b"".join(b64decode(entry["embedding"]) for entry in packed["data"]) == answer.body


def decoded(data: bytes, dtype: str, endianness: str) -> Any:
    """Read packed values with torch, which has all of these types."""
    import torch

    width = {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)
    raw = np.frombuffer(data, f"{'>' if endianness == 'big' else '<'}u{width}").astype(f"u{width}")
    kind = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}.get(dtype) or getattr(
        torch, dtype
    )
    return torch.from_numpy(raw).view(kind).float().numpy()


async def test_embeddings_metadata_that_no_header_can_hold(
    post: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.server.codecs import vllm_pooling_answers

    monkeypatch.setattr(vllm_pooling_answers, "MAX_METADATA_BYTES", 600)
    body = {"model": "e", "input": ["good"] * 6, "encoding_format": "bytes"}
    refused = await post("embeddings", body)
    assert (refused.status, refused.json["error"]["param"]) == (400, "encoding_format")
    assert "bytes_only" in refused.json["error"]["message"]
    assert len((await post("embeddings", {**body, "encoding_format": "bytes_only"})).body) == 6 * 16 * 4


@pytest.mark.parametrize(("field", "value", "known"), [
    ("encoding_format", "xml", "'float', 'base64', 'bytes' or 'bytes_only'"),
    ("embed_dtype", "int8", "'fp8_e4m3' or 'fp8_e5m2'"),
    ("endianness", "middle", "'native', 'little' or 'big'"),
])  # fmt: skip
@pytest.mark.parametrize("route", ["embeddings", "pooling"])
async def test_wrong_literals(post: Routes, route: str, field: str, value: str, known: str) -> None:
    answer = await post(route, {"model": "e", "input": "good", field: value})
    assert answer.status == 400
    error = answer.json["error"]
    assert error["param"] == field
    assert all(part in error["message"] for part in ("literal_error", value, known))


@pytest.mark.parametrize(("options", "words"), [
    ({"truncate_prompt_tokens": 4}, "what is"),
    ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, "what is"),
    ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, "b c"),
    ({"truncate_prompt_tokens": -1}, "what is deep learning good bad"),
    ({"truncate_prompt_tokens": None, "truncation_side": None}, "what is deep learning good bad"),
    ({"truncate_prompt_tokens": "4"}, "what is"),
])  # fmt: skip
async def test_embeddings_truncation(post: Routes, options: Any, words: str) -> None:
    answer = (await post("embeddings", {"model": "e", "input": TOO_LONG, **options})).json
    same = (await post("embeddings", {"model": "e", "input": words})).json
    assert answer["data"] == same["data"]
    assert answer["usage"] == same["usage"] == counted(len(words.split()) + 2)


@pytest.mark.parametrize("keep", [0, -2, 9, 10**30, "x", 1.5])
async def test_embeddings_impossible_truncation(post: Routes, keep: Any) -> None:
    answer = await post("embeddings", {"model": "e", "input": "good", "truncate_prompt_tokens": keep})
    assert (answer.status, answer.json["error"]["param"]) == (400, "truncate_prompt_tokens")


async def test_embeddings_without_special_tokens(post: Routes, reference: Any) -> None:
    answer = (await post("embeddings", {"model": "e", "input": "good", "add_special_tokens": False})).json
    np.testing.assert_allclose(
        answer["data"][0]["embedding"], unit(reference("good")["token_embeddings"][1]), atol=1e-6
    )
    assert answer["usage"] == counted(1)


async def test_embeddings_use_activation(post: Routes, reference: Any) -> None:
    answer = (await post("embeddings", {"model": "e", "input": "good", "use_activation": False})).json
    np.testing.assert_allclose(answer["data"][0]["embedding"], reference("good")["embedding"], atol=1e-6)


@pytest.mark.parametrize("body", [
    {"messages": CONVERSATION},
    {"input": CONVERSATION},
    {"messages": [CONVERSATION]},
    {"input": [CONVERSATION]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "good bad a"}]}]},
    {"messages": [{"role": "user", "content": "good"}], "chat_template": "{{ messages[0].content }} bad a"},
    {
        "messages": [{"role": "user", "content": "good"}],
        "chat_template": "{{ messages[0].content }} {{ more }}",
        "chat_template_kwargs": {"more": "bad a"},
    },
])  # fmt: skip
async def test_embeddings_of_conversations(post: Routes, body: Any) -> None:
    plain = (
        await post("embeddings", {"model": "e", "input": "good bad a", "add_special_tokens": False})
    ).json
    answer = (await post("embeddings", {"model": "e", **body})).json
    assert answer["data"] == plain["data"]
    assert answer["usage"] == plain["usage"]


async def test_embeddings_of_several_conversations(post: Routes) -> None:
    other = [{"role": "user", "content": "berlin"}]
    both = (await post("embeddings", {"model": "e", "messages": [CONVERSATION, other]})).json
    alone = (await post("embeddings", {"model": "e", "messages": other})).json
    assert [entry["index"] for entry in both["data"]] == [0, 1]
    assert both["data"][1]["embedding"] == alone["data"][0]["embedding"]


@pytest.mark.parametrize(("body", "param"), [
    ({"model": "e", "messages": []}, "messages"),
    ({"model": "e", "messages": [[]]}, "messages"),
    ({"model": "e", "messages": "good"}, "messages"),
    ({"model": "e", "messages": [7]}, "messages"),
    ({"model": "e", "messages": [CONVERSATION] * 2049}, None),
    ({"model": "e", "messages": CONVERSATION, "chat_template": "{% if %}"}, None),
    ({"model": "prompted", "messages": CONVERSATION}, "messages"),
    ({"model": "e"}, "input"),
])  # fmt: skip
async def test_embeddings_of_impossible_conversations(post: Routes, body: Any, param: str | None) -> None:
    answer = await post("embeddings", body)
    assert answer.status == 400
    if param:
        assert answer.json["error"]["param"] == param
