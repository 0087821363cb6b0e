"""Asks a model for text as a program with ``tritonclient.grpc.aio`` does, and prints what it saw as JSON.

Usage: triton_generate_aio.py HOST:PORT. The inputs are those of Triton's TensorRT-LLM backend.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput, InferRequestedOutput

MODEL = "smollm2"
PROMPT = "The capital of France is"


def tensor(name: str, value: Any, datatype: str, dtype: Any) -> Any:
    """An input of shape [1, n], as that backend's clients send them."""
    array = np.array([value if isinstance(value, list) else [value]], dtype)
    found = InferInput(name, array.shape, datatype)
    found.set_data_from_numpy(array)
    return found


def texts(prompt: str, max_tokens: int, *, stream: bool) -> list[Any]:
    return [
        tensor("text_input", prompt.encode(), "BYTES", np.object_),
        tensor("max_tokens", max_tokens, "INT32", np.int32),
        tensor("bad_words", [b""], "BYTES", np.object_),
        tensor("stop_words", [b""], "BYTES", np.object_),
        tensor("end_id", 2, "INT32", np.int32),
        tensor("pad_id", 2, "INT32", np.int32),
        tensor("top_k", 1, "INT32", np.int32),
        tensor("top_p", 0.0, "FP32", np.float32),
        tensor("temperature", 1.0, "FP32", np.float32),
        tensor("random_seed", 0, "UINT64", np.uint64),
        tensor("beam_width", 1, "INT32", np.int32),
        tensor("return_log_probs", True, "BOOL", np.bool_),
        tensor("return_context_logits", False, "BOOL", np.bool_),
        tensor("stream", stream, "BOOL", np.bool_),
    ]


async def requests(*lengths: int, stream: bool) -> AsyncIterator[dict[str, Any]]:
    for length in lengths:
        yield {
            "model_name": MODEL,
            "inputs": texts(PROMPT, length, stream=stream),
            "request_id": str(length),
            "outputs": [InferRequestedOutput("text_output"), InferRequestedOutput("cum_log_probs")],
        }


async def main(address: str) -> dict[str, Any]:
    seen: dict[str, Any] = {"pieces": {}, "whole": {}}
    async with triton.InferenceServerClient(address) as client:
        for name, stream in (("pieces", True), ("whole", False)):
            answers: dict[str, list[str]] = seen[name]
            async for result, error in client.stream_infer(requests(3, 8, 5, stream=stream)):
                assert error is None, error
                text = result.as_numpy("text_output")[0].decode()
                answers.setdefault(result.get_response().id, []).append(text)
                seen["score"] = float(result.as_numpy("cum_log_probs")[0])
        call = client.stream_infer(requests(4000, stream=True))
        async for _ in call:
            seen["cancelled"] = call.cancel()
            break
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))))
