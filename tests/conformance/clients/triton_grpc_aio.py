"""Uses a server as a program with ``tritonclient.grpc.aio`` does, and prints what it saw as JSON.

Usage: triton_grpc_aio.py HOST:PORT.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException


def add_inputs(value: int) -> list[Any]:
    inputs = []
    for name in ("INPUT0", "INPUT1"):
        tensor = InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(np.full((1, 16), value, np.int32))
        inputs.append(tensor)
    return inputs


async def requests(count: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(count):
        model = "nope" if number == 3 else "addsub"
        yield {"model_name": model, "inputs": add_inputs(number), "request_id": str(number)}


async def main(address: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    async with triton.InferenceServerClient(address) as client:
        seen["ready"] = [await client.is_server_ready(), await client.is_model_ready("nope")]
        results = await asyncio.gather(*(client.infer("addsub", add_inputs(value)) for value in range(50)))
        seen["infer"] = [int(result.as_numpy("OUTPUT0")[0, 0]) for result in results]
        answers: list[Any] = []
        async for result, error in client.stream_infer(requests(20)):
            if error is None:
                answers.append([result.get_response().id, int(result.as_numpy("OUTPUT0")[0, 15])])
            else:
                answers.append(str(error.message()))
        seen["stream"] = answers
        call = client.stream_infer(requests(1))
        async for _ in call:
            seen["stream cancelled"] = call.cancel()
            break
        try:
            await client.infer("addsub", add_inputs(1)[:1], request_id="x")
        except InferenceServerException as error:
            seen["error"] = [str(error.status()), str(error.message())]
        # The client's deadline passes while the model runs, and the server goes on serving.
        slow = InferInput("INPUT0", [1, 1], "INT32")
        slow.set_data_from_numpy(np.ones((1, 1), np.int32))
        try:
            await client.infer("slow", [slow], client_timeout=0.05)
        except InferenceServerException as error:
            seen["deadline"] = str(error.status())
        seen["after the deadline"] = int(
            (await client.infer("addsub", add_inputs(4))).as_numpy("OUTPUT0")[0, 0]
        )
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))))
