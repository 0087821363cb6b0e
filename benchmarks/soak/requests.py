"""Random requests by every wire that encodes or classifies texts."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.payloads import EMBED, INFER, JSON_HEADERS
from headrace.kserve.v2 import grpc_service_pb2 as kserve
from headrace.v1 import classification_pb2, embedding_pb2

WORDS: Final = ("river", "stone", "light", "seven", "paper", "green", "letter", "market", "winter", "music")
MOST_TEXTS: Final = 32
_FEW: Final = 0.7
"""Share of requests with a single text."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One way to ask: which port, the method or path, its headers, and how texts become a request."""

    name: str
    protocol: Literal["grpc", "http"]
    target: str
    body: Callable[[Sequence[str], bool], bytes]
    """(texts, whether too long ones are cut) → request."""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Metadata or HTTP headers."""
        return JSON_HEADERS if self.protocol == "http" else ()


def _embed(texts: Sequence[str], truncate: bool) -> bytes:
    return embedding_pb2.EmbedRequest(model="minilm", texts=texts, truncate=truncate).SerializeToString()


def _infer(texts: Sequence[str], _: bool) -> bytes:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, texts))
    request = kserve.ModelInferRequest(model_name="minilm", raw_input_contents=[raw])
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    return request.SerializeToString()


def _classify(texts: Sequence[str], truncate: bool) -> bytes:
    request = classification_pb2.ClassifyRequest(model="sentiment", truncate=truncate)
    for text in texts:
        request.inputs.add(text=text)
    return request.SerializeToString()


def _tei(texts: Sequence[str], truncate: bool) -> bytes:
    return json.dumps({"inputs": list(texts), "truncate": truncate}).encode()


def _openai(texts: Sequence[str], _: bool) -> bytes:
    return json.dumps({"model": "minilm", "input": list(texts), "encoding_format": "base64"}).encode()


def _rerank(texts: Sequence[str], truncate: bool) -> bytes:
    return json.dumps({"query": texts[0], "texts": list(texts), "truncate": truncate}).encode()


WIRES: Final = (
    Wire("Embed", "grpc", EMBED, _embed),
    Wire("ModelInfer", "grpc", INFER, _infer),
    Wire("Classify", "grpc", "/headrace.v1.ClassificationService/Classify", _classify),
    Wire("/embed", "http", "/embed", _tei),
    Wire("/v1/embeddings", "http", "/v1/embeddings", _openai),
    Wire("/rerank", "http", "/rerank", _rerank),
)


def draw(source: random.Random, longest: int) -> tuple[Wire, bytes]:
    """Draw a wire and a request of 1 to 32 texts of 1 to ``longest`` words, short ones more often."""
    wire = source.choice(WIRES)
    count = 1 if source.random() < _FEW else source.randint(2, MOST_TEXTS)
    texts = [
        " ".join(source.choices(WORDS, k=1 + int((longest - 1) * source.random() ** 3))) for _ in range(count)
    ]
    return wire, wire.body(texts, source.random() < 0.9)
