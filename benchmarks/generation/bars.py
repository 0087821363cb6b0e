"""What the project demands of text generation, as data."""

from __future__ import annotations

from typing import Final

from benchmarks.bars import Bar
from benchmarks.generation.scenarios import EVERY_PATH, GRPC, OURS, SSE, UNARY

GENAI: Final = "onnxruntime-genai"
_MANY: Final = (8, 16, 32)
_ALL: Final = (1, *_MANY)
_PEERS: Final = ("vllm", "transformers-generate", "transformers-continuous", "llama-f16")
_BATCH: Final = "generation-batch"
_SMALL: Final = ("int8", "int4")
_OF_GENERATE: Final = ((1, 2.5), (8, 2.7), (16, 1.8), (32, 1.7))
"""What ONNX Runtime gains over transformers' static generate, by streams."""

BARS: Final = (
    *(Bar(_BATCH, GRPC, streams, f"of {GENAI}", 0.95) for streams in _ALL),
    *(Bar(_BATCH, GRPC, streams, f"of {peer}", 1.0) for peer in _PEERS for streams in _MANY),
    *(Bar(_BATCH, GRPC, streams, "of transformers-generate", limit) for streams, limit in _OF_GENERATE),
    Bar(_BATCH, GRPC, 1, "decode_of floor", 0.55),
    Bar(_BATCH, GRPC, 1, "ttft_of bare-onnx", 1.15),
    *(Bar(_BATCH, SSE, streams, f"of {GRPC}", 0.95) for streams in _ALL),
    *(Bar(_BATCH, path, streams, "server_cores", 0.15) for path in OURS for streams in _ALL),
    *(Bar("generation-prefix", path, 1, "prefix_speedup", 5.0) for path in OURS),
    *(Bar("generation-routes", path, 32, f"of {UNARY}", 0.95) for path in EVERY_PATH if path != UNARY),
    Bar("generation-mixed", GRPC, 16, "of bare-onnx", 0.85),
    Bar("generation-mixed", GRPC, 16, "itl_spread", 2.0),
    *(Bar(f"generation-{bits}", GRPC, 1, "of llama-q4_1", 1.0, group="small weights") for bits in _SMALL),
    *(Bar("generation-torch", GRPC, streams, "of transformers-generate", 1.0) for streams in _ALL),
    *(Bar("generation-overload", path, 200, "free_of_all", 1.0) for path in OURS),
    *(Bar("generation-overload", path, 200, "next_of_before", 2.0) for path in OURS),
    *(Bar("generation-overload", path, 200, "memory_growth", 1.05) for path in OURS),
)
_NAMES: Final = {
    "server_cores": "server CPU, cores at 100 tokens/s",
    "prefix_speedup": "TTFT, new prefix ÷ known prefix",
    "itl_spread": "time between tokens, p99 ÷ median",
    "free_of_all": "free slots afterwards ÷ all",
    "next_of_before": "next request's time ÷ the same before",
    "memory_growth": "memory after the last wave ÷ after the first",
}
_RATIOS: Final = {"of": "tokens/s", "decode_of": "decode tokens/s", "ttft_of": "TTFT"}


def describe(metric: str) -> str:
    """Say what a metric is; ratios are named ``of``, ``decode_of`` or ``ttft_of`` and the other contender."""
    kind, _, other = metric.partition(" ")
    return f"{_RATIOS[kind]} ÷ {other}" if kind in _RATIOS else _NAMES.get(metric, metric)
