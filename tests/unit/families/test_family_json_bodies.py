"""JSON bodies, the forms of text inputs, and vectors to bytes."""

from __future__ import annotations

import gzip
import struct
from base64 import b64decode
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.codecs.json_body import decode, encode, parse
from headrace.server.codecs.text_inputs import direction, pairs, texts
from headrace.server.codecs.vector_formats import VectorFormat
from headrace.server.codecs.vectors import json_embeddings, json_vectors, packed_vectors
from headrace.server.errors import (
    BatchTooLargeError,
    InputEmptyError,
    InvalidArgumentError,
    InvalidJsonError,
)
from headrace.server.tasks.text_encoding import Direction
from headrace.v1 import embedding_pb2


class Body(msgspec.Struct):
    inputs: str | list[str | int | list[int]]
    size: int | None = None
    flag: bool | None = None


@pytest.mark.parametrize(("body", "message", "offset"), [
    (b"", "the body is empty, expected JSON", "0"),
    (b"{", "the body is not valid JSON: .* at character 1$", "1"),
    (b'{"a": 1,}', "the body is not valid JSON", "7"),
    (b'{"a": "\xff"}', "the body is not valid JSON: invalid start byte at byte 7, expected UTF-8", "7"),
    (gzip.compress(b"{}"), r"the body is compressed \(gzip\), expected plain JSON", "0"),
    (b'{"a": "\\ud800"}', "the body is not valid JSON: no low surrogate in string", "7"),
    (b"[" * 5000, "the body is not valid JSON: depth limit exceeded", "1025"),
    (b'{"a": NaN}', "the body is not valid JSON", "6"),
])  # fmt: skip
def test_what_is_not_json(body: bytes, message: str, offset: str) -> None:
    with pytest.raises(InvalidJsonError, match=message) as caught:
        parse(body)
    assert caught.value.metadata == {"offset": offset}


@pytest.mark.parametrize(("body", "message", "field"), [
    ({}, "`inputs` is missing", "inputs"),
    ({"inputs": None}, "`inputs`: expected `str | array`, got `null`", "inputs"),
    ({"inputs": 5}, "`inputs`: expected `str | array`, got `int`", "inputs"),
    ({"inputs": ["a", {}]}, r"`inputs\[1\]`: expected `int | str | array`, got `object`", "inputs[1]"),
    ({"inputs": [[1, "a"]]}, r"`inputs\[0\]\[1\]`: expected `int`, got `str`", "inputs[0][1]"),
    ({"inputs": "a", "size": "5"}, "`size`: expected `int | null`, got `str`", "size"),
    ({"inputs": "a", "flag": 1}, "`flag`: expected `bool | null`, got `int`", "flag"),
    ([], "the body: expected `object`, got `array`", None),
    ("text", "the body: expected `object`, got `str`", None),
    (None, "the body: expected `object`, got `null`", None),
])  # fmt: skip
def test_json_of_another_shape(body: Any, message: str, field: str | None) -> None:
    with pytest.raises(InvalidJsonError, match=f"^{message.replace('|', '.')}$") as caught:
        decode(orjson.dumps(body), Body)
    assert caught.value.metadata.get("field") == field
    assert "offset" not in caught.value.metadata


def test_null_is_absent_and_unknown_fields_are_ignored() -> None:
    body = decode(b'{"inputs": "a", "size": null, "flag": null, "zzz": {"deep": [1]}}', Body)
    assert body == Body("a")


def test_text_inputs() -> None:
    assert texts("a", field="inputs", limit=1) == ["a"]
    assert texts(["a", "b"], field="inputs", limit=2) == ["a", "b"]
    assert texts([1, 2, 3], field="inputs", limit=1) == [[1, 2, 3]]  # one input
    assert texts([[1, 2], "b"], field="inputs", limit=2) == [[1, 2], "b"]
    with pytest.raises(InputEmptyError, match=r"^`input` cannot be empty$"):
        texts([], field="input", limit=2)
    with pytest.raises(BatchTooLargeError, match=r"^batch size 3 > maximum allowed batch size 2$"):
        texts(["a", "b", "c"], field="inputs", limit=2)
    for mixed in ([1, "a"], ["a", 1], [[1], 1]):
        with pytest.raises(InvalidJsonError, match="token ids and texts cannot be in one list"):
            texts(mixed, field="inputs", limit=5)  # type: ignore[arg-type]


def test_pair_inputs() -> None:
    assert pairs("a", field="inputs", limit=1) == (["a"], False)
    assert pairs(["a"], field="inputs", limit=1) == (["a"], False)
    assert pairs(["a", "b"], field="inputs", limit=1) == ([("a", "b")], False)
    assert pairs([["a"], ["a", "b"]], field="inputs", limit=2) == (["a", ("a", "b")], True)
    malformed: list[Any] = [[], ["a", "b", "c"], [[]], [["a", "b", "c"]], ["a", ["b"]]]
    for wrong in malformed:
        with pytest.raises(InvalidJsonError, match="expected a string, a pair of strings"):
            pairs(wrong, field="inputs", limit=5)
    with pytest.raises(BatchTooLargeError):
        pairs([["a"]] * 3, field="inputs", limit=2)


def test_directions() -> None:
    assert direction(None) is direction("Right") is direction("right") is Direction.RIGHT
    assert direction("LEFT") is Direction.LEFT
    with pytest.raises(
        InvalidArgumentError, match="`truncation_direction` is 'up', expected 'Left' or 'Right'"
    ):
        direction("up")


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = st.sampled_from([1, 3, 100, 384]).flatmap(
    lambda width: st.sampled_from([0, 1, 2, 42, 43, 86]).map(
        lambda rows: (
            np.random.default_rng(rows * 1000 + width).standard_normal((rows, width)).astype(np.float32)
        )
    )
)


@given(matrices)
def test_vectors_as_json_read_back_equal(vectors: Any) -> None:
    assert np.array_equal(
        np.array(orjson.loads(json_vectors(vectors)), np.float32).reshape(vectors.shape), vectors
    )
    plain = orjson.loads(json_embeddings(vectors, VectorFormat()))
    packed = orjson.loads(json_embeddings(vectors, VectorFormat("base64")))
    for entries in (plain, packed):
        assert [entry["index"] for entry in entries] == list(range(len(vectors)))
        assert {entry["object"] for entry in entries} <= {"embedding"}
    for row, one, other in zip(vectors, plain, packed, strict=True):
        assert np.array_equal(np.array(one["embedding"], np.float32), row)
        assert np.array_equal(np.frombuffer(b64decode(other["embedding"]), "<f4"), row)


@given(st.lists(floats, min_size=1, max_size=8))
def test_numbers_have_their_shortest_float32_text(values: list[float]) -> None:
    text = json_vectors(np.array([values], np.float32))[2:-2].decode().split(",")
    for shown, value in zip(text, values, strict=True):
        assert struct.pack("<f", float(shown)) == struct.pack("<f", value)
        assert len(shown.lstrip("-").replace(".", "").split("e")[0].strip("0")) <= 9
    assert encode(np.float32(0.1)) == b"0.1"


@given(matrices)
def test_packed_vectors_are_the_message(vectors: Any) -> None:
    expected = embedding_pb2.EmbedResponse(
        embeddings=[embedding_pb2.Embedding(values=row) for row in vectors.tolist()]
    )
    assert embedding_pb2.EmbedResponse.FromString(packed_vectors(vectors)) == expected
    assert packed_vectors(vectors) == expected.SerializeToString()
