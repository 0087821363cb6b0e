"""Asks a model for text as a program with ``tritonclient.grpc`` does, and prints what it saw as JSON.

Usage: triton_generate.py HOST:PORT. The inputs are those of Triton's vLLM backend.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "smollm2"
PROMPT = "The capital of France is"


def texts(prompt: str, *, stream: bool = False, shape: tuple[int, ...] = (1,), **others: Any) -> list[Any]:
    """Inputs: the prompt and greedy sampling parameters; ``others`` are flags or sampling parameters."""
    flags = {name: others.pop(name) for name in list(others) if isinstance(others[name], bool)}
    parameters = json.dumps({"temperature": 0, "max_tokens": 8, **others})
    inputs = []
    for name, value in (("text_input", prompt), ("sampling_parameters", parameters)):
        tensor = triton.InferInput(name, list(shape), "BYTES")
        tensor.set_data_from_numpy(np.full(shape, value.encode(), np.object_))
        inputs.append(tensor)
    for name, flag in {"stream": stream, **flags}.items():
        tensor = triton.InferInput(name, list(shape), "BOOL")
        tensor.set_data_from_numpy(np.full(shape, flag))
        inputs.append(tensor)
    return inputs


class Stream:
    """One stream of a client; answers come on another thread."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: self.answers.put((result, error)))

    def ask(self, inputs: list[Any], request_id: str, **others: Any) -> None:
        self.client.async_stream_infer(MODEL, inputs, request_id=request_id, **others)

    def until_final(self, count: int = 1) -> list[Any]:
        """Answers up to the ``count``-th final one: [id, text, final] or an error's text."""
        found: list[Any] = []
        while count:
            result, error = self.answers.get(timeout=60)
            if error is not None:
                found.append(str(error.message()))
                count -= 1
                continue
            reply = result.get_response()
            text = result.as_numpy("text_output")
            final = reply.parameters["triton_final_response"].bool_param
            found.append([reply.id, None if text is None else text[0].decode(), final])
            count -= final
        return found


def main(address: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata(MODEL, as_json=True)
        seen["inputs"] = [[entry["name"], entry["datatype"], entry["shape"]] for entry in metadata["inputs"]]
        seen["outputs"] = [entry["name"] for entry in metadata["outputs"]]
        config = client.get_model_config(MODEL, as_json=True)["config"]
        seen["decoupled"] = config["model_transaction_policy"]
        seen["required"] = [entry["name"] for entry in config["input"] if not entry.get("optional")]
        stream = Stream(client)
        stream.ask(texts(PROMPT), "whole")
        seen["whole"] = stream.until_final()
        stream.ask(texts(PROMPT, stream=True), "pieces")
        seen["pieces"] = stream.until_final()
        stream.ask(texts(PROMPT, stream=True), "end", enable_empty_final_response=True)
        seen["empty final"] = stream.until_final()
        stream.ask(texts(PROMPT, shape=(1, 1)), "batch of one")
        seen["batch of one"] = stream.until_final()
        stream.ask(texts("", stream=True), "empty")
        stream.ask(texts(PROMPT), "after")
        seen["error"] = sorted(stream.until_final(2), key=str)
        for number in range(8):
            stream.ask(texts(PROMPT, stream=True, max_tokens=4 + number), str(number))
        seen["together"] = stream.until_final(8)
        # A stream that is given up: the text that it was asked for is long.
        stream.ask(texts("Once upon a time", stream=True, max_tokens=4000, ignore_eos=True), "long")
        stream.answers.get(timeout=60)
        client.stop_stream(cancel_requests=True)
        try:
            client.infer(MODEL, texts(PROMPT))
        except InferenceServerException as error:
            seen["infer"] = [str(error.status()), str(error.message())]
        done = threading.Event()
        failures: list[str] = []

        def refused(result: Any, error: Any) -> None:
            failures.append(str(error.message()))
            done.set()

        client.async_infer(MODEL, texts(PROMPT), refused)
        done.wait(60)
        seen["async infer"] = failures
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
