"""The gRPC API of Text Embeddings Inference: its fields, and its behaviour over a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor

from headrace.tei.v1 import tei_pb2, tei_pb2_grpc
from running import ServerProcess

LIST = Path(__file__).parent / "data" / "tei-proto-fields.txt"
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FLOAT: "float",
}


def described() -> list[str]:
    """Our file in the notation of the list."""
    file = tei_pb2.DESCRIPTOR
    lines = [
        f"enum {enum.name}: " + " ".join(f"{value.name}={value.number}" for value in enum.values)
        for enum in file.enum_types_by_name.values()
    ]
    for message in file.message_types_by_name.values():
        fields = " ".join(f"{field.name}={field.number}:{kind(field)}" for field in message.fields)
        lines.append(f"{message.name}: {fields}".strip())
    for service in file.services_by_name.values():
        for method in service.methods:
            given = ("stream " if method.client_streaming else "") + method.input_type.name
            answer = ("stream " if method.server_streaming else "") + method.output_type.name
            lines.append(f"rpc {service.name}.{method.name} {given} -> {answer}")
    return lines


def kind(field: FieldDescriptor) -> str:
    name = TYPES.get(field.type)
    if name is None:
        of = field.message_type or field.enum_type
        assert of is not None
        name = of.name
    if field.is_repeated:
        return f"{name}*"
    return f"{name}?" if field.has_presence and field.message_type is None else name


def test_the_file_is_wire_identical() -> None:
    assert tei_pb2.DESCRIPTOR.package == "tei.v1"
    assert sorted(described()) == sorted(LIST.read_text().splitlines())


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as found:
        yield found


@pytest.fixture
def embed(channel: grpc.Channel) -> Any:
    return tei_pb2_grpc.EmbedStub(channel)


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def test_info(channel: grpc.Channel) -> None:
    info = tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest())
    assert (info.model_id, info.model_type) == ("minilm", tei_pb2.MODEL_TYPE_EMBEDDING)
    assert info.max_input_length == 256
    assert info.max_client_batch_size == 32
    assert info.model_dtype == "float32"
    assert not info.HasField("sha")


def test_info_of_a_named_model(channel: grpc.Channel) -> None:
    metadata = (("x-headrace-model", "sentiment"),)
    info = tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest(), metadata=metadata)
    assert (info.model_id, info.model_type) == ("sentiment", tei_pb2.MODEL_TYPE_CLASSIFIER)


def test_embed_says_what_it_cost(embed: Any) -> None:
    answer, call = embed.Embed.with_call(tei_pb2.EmbedRequest(inputs="deep learning"))
    assert len(answer.embeddings) == 384
    assert np.linalg.norm(answer.embeddings) == pytest.approx(1, abs=1e-5)
    assert answer.metadata.compute_chars == len("deep learning")
    assert answer.metadata.compute_tokens == 4
    assert answer.metadata.total_time_ns >= answer.metadata.inference_time_ns > 0
    headers = dict(call.initial_metadata())
    assert headers["x-compute-tokens"] == "4"
    assert headers["x-compute-characters"] == "13"
    assert headers["x-inference-time"].isdecimal()


def test_embed_options(embed: Any) -> None:
    plain = embed.Embed(tei_pb2.EmbedRequest(inputs="deep learning", normalize=False)).embeddings
    assert np.linalg.norm(plain) > 1.5
    short = embed.Embed(tei_pb2.EmbedRequest(inputs="deep learning", dimensions=64)).embeddings
    np.testing.assert_allclose(short, np.array(plain[:64]) / np.linalg.norm(plain[:64]), atol=1e-6)


def test_too_long_is_refused_unless_truncated(embed: Any) -> None:
    long = "deep learning " * 400
    code, text = refused(lambda: embed.Embed(tei_pb2.EmbedRequest(inputs=long)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("Input validation error: `inputs` must have less than 256 tokens. Given: ")
    right = embed.Embed(tei_pb2.EmbedRequest(inputs=long + "paris", truncate=True))
    left = embed.Embed(
        tei_pb2.EmbedRequest(
            inputs=long + "paris", truncate=True, truncation_direction=tei_pb2.TRUNCATION_DIRECTION_LEFT
        )
    )
    assert right.metadata.compute_tokens == left.metadata.compute_tokens == 256
    assert right.embeddings != left.embeddings


def test_an_empty_text_is_refused(embed: Any) -> None:
    assert refused(lambda: embed.Embed(tei_pb2.EmbedRequest())) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Input validation error: `inputs` cannot be empty",
    )


def test_an_unknown_prompt_is_refused(embed: Any) -> None:
    code, text = refused(lambda: embed.Embed(tei_pb2.EmbedRequest(inputs="a", prompt_name="query")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no prompts were found in the Sentence Transformers configuration" in text


def test_a_stream_answers_in_order(embed: Any) -> None:
    texts = [f"text number {index}" for index in range(40)]
    streamed = list(embed.EmbedStream(tei_pb2.EmbedRequest(inputs=text) for text in texts))
    for text, answer in zip(texts, streamed, strict=True):
        alone = embed.Embed(tei_pb2.EmbedRequest(inputs=text))
        np.testing.assert_allclose(answer.embeddings, alone.embeddings, atol=1e-5)


def test_an_error_ends_a_stream(embed: Any) -> None:
    requests = [tei_pb2.EmbedRequest(inputs=text) for text in ("a", "", "b")]
    code, _ = refused(lambda: list(embed.EmbedStream(iter(requests))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_embed_all_gives_the_tokens_whose_mean_is_the_vector(embed: Any) -> None:
    answer = embed.EmbedAll(tei_pb2.EmbedAllRequest(inputs="deep learning"))
    vectors = np.array([token.embeddings for token in answer.token_embeddings])
    assert vectors.shape == (4, 384)
    plain = embed.Embed(tei_pb2.EmbedRequest(inputs="deep learning", normalize=False)).embeddings
    np.testing.assert_allclose(vectors.mean(axis=0), plain, atol=1e-5)
    [streamed] = embed.EmbedAllStream(iter([tei_pb2.EmbedAllRequest(inputs="deep learning")]))
    assert streamed.token_embeddings == answer.token_embeddings


def test_a_model_without_splade_has_no_sparse_vectors(embed: Any) -> None:
    assert refused(lambda: embed.EmbedSparse(tei_pb2.EmbedSparseRequest(inputs="a"))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Backend error: Model is not an embedding model with SPLADE pooling",
    )


def test_predict(channel: grpc.Channel) -> None:
    stub = tei_pb2_grpc.PredictStub(channel)
    metadata = (("x-headrace-model", "sentiment"),)
    answer = stub.Predict(tei_pb2.PredictRequest(inputs="I love this"), metadata=metadata)
    assert answer.predictions[0].label == "positive"
    assert sum(entry.score for entry in answer.predictions) == pytest.approx(1, abs=1e-5)
    raw = stub.Predict(tei_pb2.PredictRequest(inputs="I love this", raw_scores=True), metadata=metadata)
    assert [entry.label for entry in raw.predictions] == [entry.label for entry in answer.predictions]
    assert sum(entry.score for entry in raw.predictions) != pytest.approx(1, abs=1e-3)
    pair = tei_pb2.PredictPairRequest(inputs=["I love this", "very much"])
    [streamed] = stub.PredictPairStream(iter([pair]), metadata=metadata)
    assert streamed.predictions == stub.PredictPair(pair, metadata=metadata).predictions
    code, text = refused(lambda: stub.PredictPair(tei_pb2.PredictPairRequest(inputs=["a"])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "2 elements" in text


def test_predict_with_an_embedder_is_a_failed_precondition(channel: grpc.Channel) -> None:
    stub = tei_pb2_grpc.PredictStub(channel)
    code, text = refused(
        lambda: stub.Predict(tei_pb2.PredictRequest(inputs="a"), metadata=(("x-headrace-model", "minilm"),))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text.startswith("Backend error: model is not a classifier model: model 'minilm' is for task embed")


def test_rerank_and_its_stream(channel: grpc.Channel) -> None:
    stub = tei_pb2_grpc.RerankStub(channel)
    query, texts = (
        "What is the capital of France?",
        ["Bananas are yellow.", "Paris is the capital of France."],
    )
    answer = stub.Rerank(tei_pb2.RerankRequest(query=query, texts=texts, return_text=True))
    assert [rank.index for rank in answer.ranks] == [1, 0]
    assert answer.ranks[0].text == texts[1]
    assert answer.ranks[0].score > answer.ranks[1].score
    streamed = stub.RerankStream(
        tei_pb2.RerankStreamRequest(query=query, text=text, return_text=True) for text in texts
    )
    assert streamed.ranks == answer.ranks
    other = tei_pb2.RerankStreamRequest(query="What is yellow?", text=texts[0])
    own = stub.RerankStream(iter([tei_pb2.RerankStreamRequest(query=query, text=texts[1]), other]))
    alone = stub.Rerank(tei_pb2.RerankRequest(query=other.query, texts=[other.text])).ranks[0].score
    assert {rank.index: rank.score for rank in own.ranks}[1] == pytest.approx(alone, abs=1e-5)
    assert not stub.Rerank(tei_pb2.RerankRequest(query=query, texts=texts)).ranks[0].HasField("text")


def test_rerank_limits(channel: grpc.Channel) -> None:
    stub = tei_pb2_grpc.RerankStub(channel)
    assert refused(lambda: stub.Rerank(tei_pb2.RerankRequest(query="a", texts=["b"] * 33))) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "batch size 33 > maximum allowed batch size 32",
    )
    code, text = refused(lambda: stub.RerankStream(iter([])))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "`texts` cannot be empty")


def test_tokenize_and_decode(channel: grpc.Channel) -> None:
    stub = tei_pb2_grpc.TokenizeStub(channel)
    text = "naïve café"
    bare = stub.Tokenize(tei_pb2.EncodeRequest(inputs=text)).tokens
    assert not any(token.special for token in bare)
    raw = text.encode()
    assert all(raw[token.start : token.stop].decode() == token.text for token in bare)
    full = stub.Tokenize(tei_pb2.EncodeRequest(inputs=text, add_special_tokens=True)).tokens
    assert [token.text for token in (full[0], full[-1])] == ["[CLS]", "[SEP]"]
    assert full[0].special
    assert not full[0].HasField("start")
    assert full[1:-1] == bare
    ids = [token.id for token in full]
    assert stub.Decode(tei_pb2.DecodeRequest(ids=ids, skip_special_tokens=True)).text == "naive cafe"
    [streamed] = stub.DecodeStream(iter([tei_pb2.DecodeRequest(ids=ids)]))
    assert streamed.text == "[CLS] naive cafe [SEP]"
    [tokens] = stub.TokenizeStream(iter([tei_pb2.EncodeRequest(inputs=text)]))
    assert tokens.tokens == bare
    code, reason = refused(lambda: stub.Decode(tei_pb2.DecodeRequest(ids=[10**6])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "out of vocabulary" in reason
