"""tritonclient against Headrace: tensors in and out, and text from a model that answers many times.

A program of its own: tritonclient and Headrace's stubs bring the same proto files, and one process takes one.
"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def add(client: Any) -> None:
    """Add and subtract two tensors."""
    inputs = []
    for name, array in (("INPUT0", np.arange(16)), ("INPUT1", np.ones(16))):
        tensor = triton.InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(array.astype(np.int32).reshape(1, 16))
        inputs.append(tensor)
    answer = client.infer("addsub", inputs)
    print(answer.as_numpy("OUTPUT0")[0].tolist())


def generate(client: Any) -> None:
    """Stream the continuation of a prompt."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"The capital of France is"], np.object_))
    parameters = {"stream": True, "max_tokens": 4, "temperature": 0}
    client.async_stream_infer("smollm2", [prompt], parameters=parameters, enable_empty_final_response=True)
    while True:
        answer = answers.get(timeout=60)
        if isinstance(answer, Exception):
            raise answer
        text = answer.as_numpy("text_output")
        if text is not None:
            print(text[0].decode(), end="", flush=True)
        if answer.get_response().parameters["triton_final_response"].bool_param:
            break
    print()
    client.stop_stream()


def main(address: str) -> None:
    """Run both against the server's gRPC port."""
    with triton.InferenceServerClient(address) as client:
        add(client)
        generate(client)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
