"""Calls a server that speaks TLS with ``tritonclient.grpc``, and prints what it saw as JSON.

Usage: triton_tls.py HOST:PORT CA [KEY CERTIFICATE]. A process of its own, because the client brings its own
copy of the stubs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main() -> dict[str, Any]:
    address, ca, *own = sys.argv[1:]
    key, certificate = own or (None, None)
    client = triton.InferenceServerClient(
        address, ssl=True, root_certificates=ca, private_key=key, certificate_chain=certificate
    )
    numbers = np.arange(16, dtype=np.int32).reshape(1, 16)
    inputs = []
    for name in ("INPUT0", "INPUT1"):
        tensor = triton.InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(numbers)
        inputs.append(tensor)
    try:
        sums = client.infer("addsub", inputs).as_numpy("OUTPUT0")
        return {"live": client.is_server_live(), "right": bool((sums == numbers * 2).all())}
    except InferenceServerException as error:
        return {"status": error.status()}
    finally:
        client.close()


sys.stdout.write(json.dumps(main()))
