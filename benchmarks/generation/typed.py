"""The typed API's two RPCs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.generation.client import Piece
from benchmarks.generation.events import grpc_messages
from benchmarks.generation.words import Prompt
from headrace.v1 import common_pb2, generation_pb2

GENERATE: Final = "/headrace.v1.GenerationService/Generate"
GENERATE_STREAM: Final = "/headrace.v1.GenerationService/GenerateStream"


def unary_body(model: str, prompt: Prompt, new_tokens: int) -> bytes:
    """Ask for one answer."""
    return generation_pb2.GenerateRequest(
        model=model, token_ids=common_pb2.TokenIds(ids=prompt.ids), parameters=_parameters(new_tokens)
    ).SerializeToString()


def typed_body(model: str, prompt: Prompt, new_tokens: int) -> bytes:
    """Ask for a stream."""
    return generation_pb2.GenerateStreamRequest(
        model=model, token_ids=common_pb2.TokenIds(ids=prompt.ids), parameters=_parameters(new_tokens)
    ).SerializeToString()


def typed_ids(pieces: Sequence[Piece]) -> list[int]:
    """Return the ids of one answer.

    Raises:
        ValueError: there is none.
    """
    messages = list(grpc_messages(pieces))
    if len(messages) != 1:
        raise ValueError(f"{len(messages)} answers to one request")
    answer = generation_pb2.GenerateResponse.FromString(messages[0][1])
    return [number for sample in answer.samples for number in sample.token_ids]


def typed_tokens(pieces: Sequence[Piece]) -> tuple[list[float], list[int]]:
    """Return when each token of a stream was there, and its id."""
    times: list[float] = []
    ids: list[int] = []
    for moment, message in grpc_messages(pieces):
        fresh = generation_pb2.GenerateStreamResponse.FromString(message).delta.token_ids
        times += [moment] * len(fresh)
        ids += fresh
    return times, ids


def _parameters(new_tokens: int) -> generation_pb2.GenerationParameters:
    return generation_pb2.GenerationParameters(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
