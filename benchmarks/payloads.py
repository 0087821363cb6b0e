"""The requests of every route, serialised once, and how to read their answers back."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenarios import Scenario
from benchmarks.workloads import Addsub, Images, Texts, Workload
from headrace.kserve.v2 import grpc_service_pb2 as kserve
from headrace.v1 import embedding_pb2

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
EMBED: Final = "/headrace.v1.EmbeddingService/Embed"
JSON_HEADERS: Final = (("content-type", "application/json"),)
Decode = Callable[[bytes], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Payload:
    """Serialised requests and their address.

    Attributes:
        protocol: which port they go to.
        target: the gRPC method or the URL path.
        headers: gRPC metadata or HTTP headers.
        bodies: one per request, taken in turn.
        weights: average items that each of them is worth.
        decode: reads an answer as [items, values].
    """

    protocol: Literal["grpc", "http"]
    target: str
    headers: tuple[tuple[str, str], ...]
    bodies: tuple[bytes, ...]
    weights: tuple[float, ...]
    decode: Decode


def addsub_grpc(scenario: Scenario, work: Addsub) -> Payload:
    """ModelInfer with raw tensors."""

    def body(left: NDArray[np.int32], right: NDArray[np.int32]) -> bytes:
        request = kserve.ModelInferRequest(model_name=scenario.model)
        for name, row in (("INPUT0", left), ("INPUT1", right)):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            request.raw_input_contents.append(row.tobytes())
        return request.SerializeToString()

    def decode(answer: bytes) -> NDArray[Any]:
        raw = kserve.ModelInferResponse.FromString(answer).raw_output_contents
        return np.concatenate([np.frombuffer(block, np.int32).reshape(-1, 16) for block in raw], axis=1)

    bodies = tuple(body(*pair) for pair in zip(work.left, work.right, strict=True))
    return Payload("grpc", INFER, (), bodies, _weights(scenario, work), decode)


def addsub_rest(scenario: Scenario, work: Addsub) -> Payload:
    """KServe's JSON with the values in it."""

    def body(left: NDArray[np.int32], right: NDArray[np.int32]) -> bytes:
        inputs = [
            {"name": name, "datatype": "INT32", "shape": [1, 16], "data": row.tolist()}
            for name, row in (("INPUT0", left), ("INPUT1", right))
        ]
        return json.dumps({"inputs": inputs}).encode()

    def decode(answer: bytes) -> NDArray[Any]:
        outputs = json.loads(answer)["outputs"]
        return np.concatenate(
            [np.asarray(entry["data"], np.int32).reshape(-1, 16) for entry in outputs], axis=1
        )

    bodies = tuple(body(*pair) for pair in zip(work.left, work.right, strict=True))
    return Payload(
        "http", f"/v2/models/{scenario.model}/infer", JSON_HEADERS, bodies, _weights(scenario, work), decode
    )


def embed_grpc(scenario: Scenario, work: Texts) -> Payload:
    """The typed API's Embed."""
    bodies = tuple(
        embedding_pb2.EmbedRequest(model=scenario.model, texts=texts).SerializeToString()
        for texts in _grouped(work.texts, scenario.items)
    )

    def decode(answer: bytes) -> NDArray[Any]:
        embeddings = embedding_pb2.EmbedResponse.FromString(answer).embeddings
        return np.asarray([entry.values for entry in embeddings], np.float32)

    return Payload("grpc", EMBED, (), bodies, _weights(scenario, work), decode)


def embed_openai(scenario: Scenario, work: Texts) -> Payload:
    """OpenAI's embeddings as its own client asks for them: base64."""

    def decode(answer: bytes) -> NDArray[Any]:
        data = json.loads(answer)["data"]
        return np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), np.float32) for entry in data])

    bodies = _openai_bodies(scenario, work, "base64")
    return Payload("http", "/v1/embeddings", JSON_HEADERS, bodies, _weights(scenario, work), decode)


def embed_openai_float(scenario: Scenario, work: Texts) -> Payload:
    """OpenAI's embeddings as JSON numbers."""

    def decode(answer: bytes) -> NDArray[Any]:
        return np.asarray([entry["embedding"] for entry in json.loads(answer)["data"]], np.float32)

    bodies = _openai_bodies(scenario, work, "float")
    return Payload("http", "/v1/embeddings", JSON_HEADERS, bodies, _weights(scenario, work), decode)


def embed_tei(scenario: Scenario, work: Texts) -> Payload:
    """TEI's /embed."""
    bodies = tuple(json.dumps({"inputs": texts}).encode() for texts in _grouped(work.texts, scenario.items))

    def decode(answer: bytes) -> NDArray[Any]:
        return np.asarray(json.loads(answer), np.float32)

    return Payload("http", "/embed", JSON_HEADERS, bodies, _weights(scenario, work), decode)


def infer_text(scenario: Scenario, work: Texts) -> Payload:
    """ModelInfer with the texts as one BYTES tensor: what every server of this protocol understands."""

    def body(texts: Sequence[str]) -> bytes:
        raw = b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, texts))
        request = kserve.ModelInferRequest(model_name=scenario.model, raw_input_contents=[raw])
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
        return request.SerializeToString()

    def decode(answer: bytes) -> NDArray[Any]:
        response = kserve.ModelInferResponse.FromString(answer)
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, 384)
        return np.asarray(response.outputs[0].contents.fp32_contents, np.float32).reshape(-1, 384)

    bodies = tuple(body(texts) for texts in _grouped(work.texts, scenario.items))
    return Payload("grpc", INFER, (), bodies, _weights(scenario, work), decode)


def image_grpc(scenario: Scenario, work: Images) -> Payload:
    """ModelInfer with a raw tensor of 588 KiB."""

    def body(pixels: NDArray[np.float32]) -> bytes:
        request = kserve.ModelInferRequest(model_name=scenario.model, raw_input_contents=[pixels.tobytes()])
        request.inputs.add(name="pixel_values", datatype="FP32", shape=[1, 3, 224, 224])
        return request.SerializeToString()

    def decode(answer: bytes) -> NDArray[Any]:
        raw = kserve.ModelInferResponse.FromString(answer).raw_output_contents[0]
        return np.frombuffer(raw, np.float32).reshape(-1, 1000)

    bodies = tuple(body(pixels) for pixels in work.pixels)
    return Payload("grpc", INFER, (), bodies, _weights(scenario, work), decode)


def image_rest(scenario: Scenario, work: Images) -> Payload:
    """KServe's binary tensor extension in both directions."""
    size = work.pixels[0].nbytes
    tensor = {
        "name": "pixel_values", "datatype": "FP32", "shape": [1, 3, 224, 224],
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = (
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", str(len(head))),
    )

    def decode(answer: bytes) -> NDArray[Any]:
        return np.frombuffer(answer[-4000:], np.float32).reshape(-1, 1000)

    bodies = tuple(head + pixels.tobytes() for pixels in work.pixels)
    target = f"/v2/models/{scenario.model}/infer"
    return Payload("http", target, headers, bodies, _weights(scenario, work), decode)


BUILDERS: Final[Mapping[str, Callable[[Scenario, Any], Payload]]] = MappingProxyType(
    {
        "addsub-grpc": addsub_grpc,
        "addsub-rest": addsub_rest,
        "embed-grpc": embed_grpc,
        "embed-openai": embed_openai,
        "embed-openai-float": embed_openai_float,
        "embed-tei": embed_tei,
        "infer-text": infer_text,
        "image-grpc": image_grpc,
        "image-rest": image_rest,
    }
)


def _weights(scenario: Scenario, work: Workload) -> tuple[float, ...]:
    return tuple(work.weights(scenario.items))


def _grouped(texts: Sequence[str], items: int) -> Iterator[Sequence[str]]:
    """Cut the texts into requests of ``items``."""
    for start in range(0, len(texts), items):
        yield texts[start : start + items]


def _openai_bodies(scenario: Scenario, work: Texts, encoding: str) -> tuple[bytes, ...]:
    return tuple(
        json.dumps({"model": scenario.model, "input": texts, "encoding_format": encoding}).encode()
        for texts in _grouped(work.texts, scenario.items)
    )
