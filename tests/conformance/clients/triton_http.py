"""Uses a server as a program with ``tritonclient.http`` does, and prints what it saw as JSON.

Usage: triton_http.py HOST:PORT.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

NUMBERS = np.arange(32, dtype=np.int32).reshape(2, 16)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], np.int8),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
    "fp32": np.array([1.5, -0.1], np.float32),
    "fp64": np.array([1.5, -0.1], np.float64),
    "string": np.array([b"ab", b"", "é".encode()], np.object_),
}


def add_inputs(*, binary: bool = True, array: np.ndarray[Any, Any] = NUMBERS) -> list[Any]:
    inputs = []
    for name in ("INPUT0", "INPUT1"):
        tensor = triton.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def add_outputs(*, binary: bool) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in ("OUTPUT0", "OUTPUT1")]


def doubled(result: Any) -> bool:
    return bool((result.as_numpy("OUTPUT0") == NUMBERS * 2).all() and (result.as_numpy("OUTPUT1") == 0).all())


def identity(client: Any, name: str, array: np.ndarray[Any, Any], *, binary: bool) -> bool:
    datatype = "BYTES" if name == "string" else name.upper()
    tensor = triton.InferInput("INPUT0", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = [triton.InferRequestedOutput("OUTPUT0", binary_data=binary)]
    found = client.infer(f"id_{name}", [tensor], outputs=wanted).as_numpy("OUTPUT0")
    if name == "string" and not binary:
        found = np.array([text.encode() if isinstance(text, str) else text for text in found], np.object_)
    return found.dtype == array.dtype and np.array_equal(found, array)


def failure(call: Any, *arguments: Any, **options: Any) -> list[str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["no error", ""]


def main(address: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(address, concurrency=4)
    seen: dict[str, Any] = {}
    seen["live"] = client.is_server_live()
    seen["ready"] = client.is_server_ready()
    seen["model ready"] = [
        client.is_model_ready("addsub"),
        client.is_model_ready("addsub", "1"),
        client.is_model_ready("addsub", "9"),
        client.is_model_ready("nope"),
    ]
    seen["server metadata"] = client.get_server_metadata()["name"]
    seen["model metadata"] = client.get_model_metadata("addsub")
    config = client.get_model_config("addsub")
    seen["config"] = [
        config["name"],
        config["max_batch_size"],
        config["input"][0]["dims"],
        config["platform"],
    ]
    seen["infer"] = {
        f"inputs {inputs}, outputs {outputs}": doubled(
            client.infer(
                "addsub",
                add_inputs(binary=inputs == "binary"),
                outputs=None if outputs == "not named" else add_outputs(binary=outputs == "binary"),
            )
        )
        for inputs in ("binary", "json")
        for outputs in ("binary", "json", "not named")
    }
    seen["compression"] = {
        f"{there} {back}": doubled(
            client.infer(
                "addsub",
                add_inputs(),
                request_compression_algorithm=there or None,
                response_compression_algorithm=back or None,
            )
        )
        for there in ("", "gzip", "deflate")
        for back in ("", "gzip", "deflate")
    }
    seen["datatypes"] = {
        name: [identity(client, name, array, binary=binary) for binary in (True, False)]
        for name, array in ARRAYS.items()
    }
    half = np.array([1.5, -0.25], np.float16)
    seen["fp16"] = identity(client, "fp16", half, binary=True)
    result = client.infer(
        "addsub", add_inputs(), request_id="r1", model_version="1", priority=1, timeout=10_000_000,
        sequence_id=5, sequence_start=True, sequence_end=True, parameters={"a": 1, "b": "x"},
    )  # fmt: skip
    seen["identified"] = [result.get_response()["id"], result.get_response()["model_version"]]
    wanted = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    classes = client.infer("addsub", add_inputs(), outputs=wanted).as_numpy("OUTPUT0")
    seen["classification"] = [[text.decode() for text in row] for row in classes]
    pending = [client.async_infer("addsub", add_inputs()) for _ in range(4)]
    seen["async"] = [doubled(request.get_result()) for request in pending]
    before = client.get_inference_statistics("addsub")["model_stats"][0]["inference_count"]
    client.infer("addsub", add_inputs())
    after = client.get_inference_statistics("addsub")["model_stats"][0]["inference_count"]
    seen["statistics grow by"] = after - before
    index = client.get_model_repository_index()
    seen["index"] = [entry for entry in index if entry["name"] in ("addsub", "multiv")]
    seen["errors"] = {
        "unknown model": failure(client.infer, "nope", add_inputs()),
        "metadata": failure(client.get_model_metadata, "nope"),
        "statistics": failure(client.get_inference_statistics, "nope"),
        "shape": failure(client.infer, "addsub", add_inputs(array=NUMBERS[:, :8].copy())),
    }
    client.unload_model("id_uint16")
    seen["after unload"] = [
        client.is_model_ready("id_uint16"),
        failure(client.get_model_metadata, "id_uint16"),
    ]
    client.load_model("id_uint16")
    seen["after load"] = client.is_model_ready("id_uint16")
    seen["load unknown"] = failure(client.load_model, "nope")[0]
    client.close()
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
