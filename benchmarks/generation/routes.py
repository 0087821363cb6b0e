"""Our paths: how to ask for a continuation, and how to read the tokens out of an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from benchmarks.generation import bodies
from benchmarks.generation.client import Piece
from benchmarks.generation.events import completion_times, spread, text_times, tgi_tokens
from benchmarks.generation.scenarios import GRPC, SSE, UNARY
from benchmarks.generation.triton_stream import TRITON_STREAM, triton_body, triton_times
from benchmarks.generation.typed import (
    GENERATE,
    GENERATE_STREAM,
    typed_body,
    typed_ids,
    typed_tokens,
    unary_body,
)
from benchmarks.generation.words import Prompt

Tokens = tuple[list[float], list[int]]
"""When each token was there, and the ids; no ids where the wire has none."""

JSON: Final = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Route:
    """One wire.

    Attributes:
        title: what it is, for people.
        protocol: which port.
        target: the gRPC method or the URL path; ``{model}`` is the model's name.
        headers: gRPC metadata or HTTP headers.
        body: (model, prompt, new tokens) → request.
        read: (pieces of an answer, tokens that were asked for) → tokens.
    """

    title: str
    protocol: Literal["grpc", "http"]
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Callable[[str, Prompt, int], bytes]
    read: Callable[[Sequence[Piece], int], Tokens]


def _unary(pieces: Sequence[Piece], _: int) -> Tokens:
    ids = typed_ids(pieces)
    return [pieces[-1][0]] * len(ids), ids


def _stream(pieces: Sequence[Piece], _: int) -> Tokens:
    return typed_tokens(pieces)


def _openai(pieces: Sequence[Piece], _: int) -> Tokens:
    return completion_times(pieces), []


def _tgi(pieces: Sequence[Piece], _: int) -> Tokens:
    return tgi_tokens(pieces)


def _triton_rest(pieces: Sequence[Piece], asked: int) -> Tokens:
    # The wire does not count tokens; the model of these scenarios makes as many as it is asked for.
    return spread(text_times(pieces), asked), []


def _triton_grpc(pieces: Sequence[Piece], asked: int) -> Tokens:
    return spread(triton_times(pieces), asked), []


ROUTES: Final[Mapping[str, Route]] = MappingProxyType(
    {
        UNARY: Route("headrace.v1 Generate", "grpc", GENERATE, (), unary_body, _unary),
        GRPC: Route("headrace.v1 GenerateStream", "grpc", GENERATE_STREAM, (), typed_body, _stream),
        SSE: Route(
            "OpenAI completions through Envoy", "http", "/v1/completions", JSON, bodies.completion, _openai
        ),
        "tgi": Route("TGI's /generate_stream", "http", "/generate_stream", JSON, bodies.tgi, _tgi),
        "compat": Route("TGI's POST / with stream", "http", "/", JSON, bodies.compat, _tgi),
        "triton-rest": Route(
            "Triton's generate_stream", "http", "/v2/models/{model}/generate_stream", JSON,
            bodies.triton_rest, _triton_rest,
        ),
        "triton-grpc": Route("KServe ModelStreamInfer", "grpc", TRITON_STREAM, (), triton_body, _triton_grpc),
        "oicm": Route(
            "OICM's chat payload", "http", "/models/{model}/proxy/v1/chat/completions", JSON, bodies.oicm,
            _openai,
        ),
    }
)  # fmt: skip
