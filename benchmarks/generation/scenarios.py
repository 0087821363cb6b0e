"""What is measured of text generation: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["batch", "prefix", "mixed", "overload"]

GRPC: Final = "grpc"
SSE: Final = "sse"
OURS: Final = (GRPC, SSE)
"""Paths of Headrace: the typed RPC, and OpenAI's completions streamed through Envoy."""

UNARY: Final = "unary"
"""The typed RPC that answers once: what the engine does, with as little around it as there can be."""

EVERY_PATH: Final = (UNARY, *OURS, "tgi", "compat", "triton-rest", "triton-grpc", "oicm")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One model under one kind of load.

    Attributes:
        name: what ``--only`` takes.
        title: one line for people.
        kind: ``batch``: equal requests that begin together. ``prefix``: one request with a prefix that is
            new, then one with the same prefix. ``mixed``: callers that begin one by one and ask again as
            soon as answered, lengths drawn from ranges; static contenders get a batch of the mean lengths.
            ``overload``: callers that leave.
        model: name in the model repository.
        contenders: in the order of a round.
        streams: requests at once.
        prompt: tokens of a prompt (of the shared prefix).
        new_tokens: tokens to be generated.
        prompt_range: shortest and longest prompt of ``mixed``.
        output_range: the same for outputs.
        words: prompts are words that are one token each, so that a text and its ids are the same work, and
            nothing ends a text early.
    """

    name: str
    title: str
    kind: Kind
    model: str
    contenders: tuple[str, ...]
    streams: tuple[int, ...]
    prompt: int = 128
    new_tokens: int = 64
    prompt_range: tuple[int, int] = (16, 256)
    output_range: tuple[int, int] = (16, 96)
    words: bool = False


SCENARIOS: Final = (
    Scenario(
        "generation-batch",
        "SmolLM2-135M fp32, 128 tokens in, 64 out",
        "batch",
        "smollm2",
        (
            GRPC,
            SSE,
            UNARY,
            "onnxruntime-genai",
            "bare-onnx",
            "llama-f16",
            "vllm",
            "transformers-generate",
            "transformers-continuous",
            "floor",
        ),
        (1, 8, 16, 32),
    ),
    Scenario(
        "generation-long",
        "SmolLM2-135M fp32, 1,024 tokens in, 64 out",
        "batch",
        "smollm2",
        (GRPC, "onnxruntime-genai", "bare-onnx", "llama-f16", "vllm", "floor"),
        (1, 8),
        prompt=1024,
    ),
    Scenario(
        "generation-prefix",
        "SmolLM2-135M fp32, a prefix of 1,000 tokens that was seen before",
        "prefix",
        "smollm2",
        (GRPC, SSE, "vllm"),
        (1,),
        prompt=1000,
        new_tokens=8,
    ),
    Scenario(
        "generation-mixed",
        "SmolLM2-135M fp32, 16 to 256 tokens in, 16 to 96 out, staggered",
        "mixed",
        "smollm2",
        (GRPC, SSE, "bare-onnx", "onnxruntime-genai", "vllm"),
        (16,),
    ),
    Scenario(
        "generation-int8",
        "SmolLM2-135M int8 weights, 128 tokens in, 64 out",
        "batch",
        "smollm2-int8",
        (GRPC, "llama-q4_1"),
        (1, 8),
    ),
    Scenario(
        "generation-int4",
        "SmolLM2-135M int4 weights, 128 tokens in, 64 out",
        "batch",
        "smollm2-int4",
        (GRPC, "llama-q4_1"),
        (1, 8),
    ),
    Scenario(
        "generation-torch",
        "SmolLM2-135M fp32 by the torch runtime, 128 tokens in, 64 out",
        "batch",
        "smollm2-torch",
        (GRPC, "transformers-generate", "transformers-continuous"),
        (1, 8, 16, 32),
    ),
    Scenario(
        "generation-routes",
        "SmolLM2-135M fp32 by every route, 128 tokens in, 64 out",
        "batch",
        "smollm2",
        EVERY_PATH,
        (32,),
        words=True,
    ),
    Scenario(
        "generation-overload",
        "200 requests of 8,000 tokens, cut after 0.5 s",
        "overload",
        "smollm2",
        OURS,
        (200,),
        prompt=16,
        new_tokens=8000,
    ),
)
