"""Our two paths: how to ask for a continuation, and how to read the tokens out of a streamed answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from benchmarks.generation.client import Piece
from benchmarks.generation.events import completion_times, grpc_messages
from benchmarks.generation.scenarios import GRPC, SSE
from headrace.v1 import common_pb2, generation_pb2

Tokens = tuple[list[float], list[int]]
"""When each token was there, and the ids; no ids where the wire has none."""


@dataclass(frozen=True, slots=True)
class Route:
    """One wire.

    Attributes:
        protocol: which port.
        target: the gRPC method or the URL path.
        headers: gRPC metadata or HTTP headers.
        body: (model, prompt, new tokens) → request.
        read: pieces of an answer → tokens.
    """

    protocol: Literal["grpc", "http"]
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Callable[[str, list[int], int], bytes]
    read: Callable[[Sequence[Piece]], Tokens]


def _typed(model: str, prompt: list[int], new_tokens: int) -> bytes:
    return generation_pb2.GenerateStreamRequest(
        model=model,
        token_ids=common_pb2.TokenIds(ids=prompt),
        parameters=generation_pb2.GenerationParameters(
            max_tokens=new_tokens, temperature=0.0, ignore_eos=True
        ),
    ).SerializeToString()


def _typed_tokens(pieces: Sequence[Piece]) -> Tokens:
    times: list[float] = []
    ids: list[int] = []
    for moment, message in grpc_messages(pieces):
        fresh = generation_pb2.GenerateStreamResponse.FromString(message).delta.token_ids
        times += [moment] * len(fresh)
        ids += fresh
    return times, ids


def _openai(model: str, prompt: list[int], new_tokens: int) -> bytes:
    body = {
        "model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body).encode()


def _openai_tokens(pieces: Sequence[Piece]) -> Tokens:
    return completion_times(pieces), []


ROUTES: Final[Mapping[str, Route]] = MappingProxyType(
    {
        GRPC: Route("grpc", "/headrace.v1.GenerationService/GenerateStream", (), _typed, _typed_tokens),
        SSE: Route(
            "http", "/v1/completions", (("content-type", "application/json"),), _openai, _openai_tokens
        ),
    }
)
