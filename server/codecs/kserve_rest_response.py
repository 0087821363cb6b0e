"""Tensor responses to REST bodies: JSON, and JSON followed by binary tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from headrace.server.codecs.kserve_json_data import raw_to_json

if TYPE_CHECKING:
    from headrace.server.codecs.kserve_rest_request import BinaryOutputs
    from headrace.server.tasks.tensors import InferResponse


class Body(NamedTuple):
    """A response body; ``json_size`` is the size of the JSON part, None when there is no binary part."""

    content: bytes
    json_size: int | None


def encode_response(response: InferResponse, binary: BinaryOutputs) -> Body:
    """Encode ``response``; members are in the order that Triton writes them in.

    Raises:
        InvalidArgumentError: a ``BYTES`` output that is wanted as JSON is not UTF-8.
    """
    buffers: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for output in response.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
        }
        if binary.every or output.name in binary.names:
            entry["parameters"] = {"binary_data_size": len(output.data)}
            buffers.append(output.data)
        else:
            entry["data"] = raw_to_json(output)
        outputs.append(entry)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model, "model_version": response.version}
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    header = orjson.dumps(document)
    content = b"".join(buffers)
    return Body(header + content, len(header)) if content else Body(header, None)
