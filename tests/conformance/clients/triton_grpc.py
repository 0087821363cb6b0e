"""Uses a server as a program with ``tritonclient.grpc`` does, and prints what it saw as JSON.

Usage: triton_grpc.py HOST:PORT. A process of its own, because the client brings its own copy of the stubs.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

NUMBERS = np.arange(32, dtype=np.int32).reshape(2, 16)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], np.int8),
    "int16": np.array([-32768, 32767], np.int16),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "uint8": np.array([0, 255], np.uint8),
    "uint16": np.array([0, 65535], np.uint16),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
    "fp16": np.array([1.5, -0.25], np.float16),
    "fp32": np.array([1.5, -0.1], np.float32),
    "fp64": np.array([1.5, -0.1], np.float64),
    "string": np.array([b"ab", b"", "é".encode()], np.object_),
}


def add_inputs(left: np.ndarray[Any, Any] = NUMBERS, right: np.ndarray[Any, Any] = NUMBERS) -> list[Any]:
    inputs = []
    for name, array in (("INPUT0", left), ("INPUT1", right)):
        tensor = triton.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def identity(client: Any, name: str, array: np.ndarray[Any, Any]) -> bool:
    datatype = "BYTES" if name == "string" else name.upper()
    tensor = triton.InferInput("INPUT0", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    found = client.infer(f"id_{name}", [tensor]).as_numpy("OUTPUT0")
    return found.dtype == array.dtype and np.array_equal(found, array)


def failure(call: Any, *arguments: Any, **options: Any) -> list[str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["no error", ""]


def stream(client: Any) -> list[Any]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    models = ["addsub", "nope", "addsub", "addsub"]
    for number, model in enumerate(models):
        client.async_stream_infer(model, add_inputs(), request_id=str(number))
    seen: list[Any] = []
    for _ in models:
        result, error = answers.get(timeout=60)
        if error is not None:
            seen.append(str(error.message()))
            continue
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        seen.append([response.id, final, bool((result.as_numpy("OUTPUT0") == NUMBERS * 2).all())])
    client.stop_stream()
    return seen


def main(address: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(address)
    seen: dict[str, Any] = {}
    seen["live"] = client.is_server_live()
    seen["ready"] = client.is_server_ready()
    seen["model ready"] = [
        client.is_model_ready("addsub"),
        client.is_model_ready("addsub", "1"),
        client.is_model_ready("addsub", "9"),
        client.is_model_ready("nope"),
    ]
    seen["server metadata"] = client.get_server_metadata(as_json=True)["name"]
    seen["model metadata"] = client.get_model_metadata("addsub", as_json=True)
    seen["versions"] = client.get_model_metadata("multiv", as_json=True)["versions"]
    config = client.get_model_config("addsub", as_json=True)["config"]
    seen["config"] = {key: config[key] for key in ("name", "backend", "max_batch_size")}
    result = client.infer("addsub", add_inputs(), request_id="r1", model_version="1")
    seen["infer"] = [
        result.get_response().id,
        result.get_response().model_version,
        bool((result.as_numpy("OUTPUT0") == NUMBERS * 2).all()),
        bool((result.as_numpy("OUTPUT1") == 0).all()),
    ]
    outputs = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    classes = client.infer("addsub", add_inputs(), outputs=outputs).as_numpy("OUTPUT0")
    seen["classification"] = [[text.decode() for text in row] for row in classes]
    seen["datatypes"] = {name: identity(client, name, array) for name, array in ARRAYS.items()}
    compressed = client.infer("addsub", add_inputs(), compression_algorithm="gzip")
    seen["compressed"] = bool((compressed.as_numpy("OUTPUT0") == NUMBERS * 2).all())
    parameters = client.infer(
        "addsub", add_inputs(), priority=1, timeout=10_000_000, parameters={"a": 1, "b": "x", "c": True}
    )
    seen["parameters"] = bool((parameters.as_numpy("OUTPUT0") == NUMBERS * 2).all())
    sequence = client.infer("addsub", add_inputs(), sequence_id=7, sequence_start=True, sequence_end=True)
    seen["sequence parameters"] = bool((sequence.as_numpy("OUTPUT0") == NUMBERS * 2).all())
    waiting: queue.Queue[Any] = queue.Queue()
    client.async_infer("addsub", add_inputs(), callback=lambda result, error: waiting.put((result, error)))
    answer, error = waiting.get(timeout=60)
    seen["async"] = [error, bool((answer.as_numpy("OUTPUT0") == NUMBERS * 2).all())]
    seen["stream"] = stream(client)
    before = client.get_inference_statistics("addsub").model_stats[0].inference_count
    client.infer("addsub", add_inputs())
    after = client.get_inference_statistics("addsub").model_stats[0].inference_count
    seen["statistics grow by"] = after - before
    index = client.get_model_repository_index(as_json=True)["models"]
    seen["index"] = [entry for entry in index if entry["name"] in ("addsub", "multiv")]
    seen["errors"] = {
        "unknown model": failure(client.infer, "nope", add_inputs()),
        "metadata": failure(client.get_model_metadata, "nope"),
        "statistics": failure(client.get_inference_statistics, "nope"),
        "shape": failure(client.infer, "addsub", add_inputs(NUMBERS[:, :8].copy())),
        "shared memory": failure(client.get_system_shared_memory_status),
    }
    client.unload_model("id_int16")
    seen["after unload"] = [
        client.is_model_ready("id_int16"),
        failure(client.get_model_metadata, "id_int16"),
        client.is_server_ready(),
    ]
    client.load_model("id_int16")
    seen["after load"] = [client.is_model_ready("id_int16"), identity(client, "int16", ARRAYS["int16"])]
    seen["load unknown"] = failure(client.load_model, "nope")[0]
    seen["text model"] = text_model(client)
    client.close()
    return seen


def text_model(client: Any) -> list[Any]:
    tensor = triton.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a cat sat"], ["a cat sat"]], np.object_))
    rows = client.infer("minilm", [tensor]).as_numpy("embedding")
    tensor.set_data_from_numpy(np.array([[b"ok"], [b"\xff"]], np.object_))
    return [
        list(rows.shape),
        bool(np.allclose(rows[0], rows[1], atol=1e-5)),
        round(float(np.linalg.norm(rows[0])), 3),
        failure(client.infer, "minilm", [tensor]),
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
