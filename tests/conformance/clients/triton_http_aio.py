"""Uses a server as a program with ``tritonclient.http.aio`` does, and prints what it saw as JSON.

Usage: triton_http_aio.py HOST:PORT.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http.aio as triton
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def add_inputs(value: int) -> list[Any]:
    inputs = []
    for name in ("INPUT0", "INPUT1"):
        tensor = InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(np.full((1, 16), value, np.int32), binary_data=value % 2 == 0)
        inputs.append(tensor)
    return inputs


async def main(address: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    async with triton.InferenceServerClient(address) as client:
        seen["ready"] = [await client.is_server_ready(), await client.is_model_ready("nope")]
        results = await asyncio.gather(
            *(
                client.infer(
                    "addsub",
                    add_inputs(value),
                    outputs=[InferRequestedOutput("OUTPUT0", binary_data=value % 3 == 0)],
                )
                for value in range(50)
            )
        )
        seen["infer"] = [int(result.as_numpy("OUTPUT0")[0, 0]) for result in results]
        try:
            await client.infer("addsub", add_inputs(1)[:1], request_id="x")
        except InferenceServerException as error:
            seen["error"] = [str(error.status()), str(error.message())]
        seen["statistics"] = (await client.get_inference_statistics("addsub"))["model_stats"][0]["name"]
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))))
