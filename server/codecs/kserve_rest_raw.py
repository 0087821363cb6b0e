"""Raw binary requests: a REST body that is nothing but the data of a model's only input."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.runtimes.datatypes import BYTES, ITEM_SIZES
from headrace.server.errors import InvalidTensorError
from headrace.server.tasks.infer_names import request_prefix
from headrace.server.tasks.tensors import InferRequest, InputTensor

if TYPE_CHECKING:
    from headrace.server.repository.model import Model


def decode_raw_request(model: Model, version: str, body: memoryview) -> InferRequest:
    """Make a request of ``body``; the shape is deduced from its size, with a batch of one.

    Args:
        model: has exactly one input: of ``BYTES`` with dims [1], whose one element the body is, or of another
            datatype with at most one dimension that varies.
        version: as the path says.
        body: the data.

    Raises:
        InvalidTensorError: the model is not of that kind.
    """
    prefix = request_prefix("")
    if len(model.inputs) != 1:
        msg = (
            f"{prefix}Raw request must only have 1 input (found 1) to be deduced but got {len(model.inputs)} "
            f"inputs in '{model.name}' model configuration"
        )
        raise InvalidTensorError(msg, model=model.name)
    spec = model.inputs[0]
    data: bytes | memoryview = body
    shape = list(spec.dims)
    if spec.datatype == BYTES:
        if shape != [1]:
            msg = f"{prefix}For BYTE datatype raw input '{spec.name}', the model must have input shape [1]"
            raise InvalidTensorError(msg, model=model.name, tensor=spec.name)
        data = len(body).to_bytes(4, "little") + bytes(body)
    elif shape.count(-1) > 1:
        msg = (
            f"{prefix}The shape of the raw input '{spec.name}' can not be deduced because there are more "
            "than one variable-sized dimension"
        )
        raise InvalidTensorError(msg, model=model.name, tensor=spec.name)
    elif -1 in shape:
        fixed = ITEM_SIZES[spec.datatype] * prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(body) // fixed if fixed else 0
    tensor = InputTensor(spec.name, spec.datatype, (1, *shape) if model.batching else tuple(shape), data)
    return InferRequest(model.name, version, inputs=[tensor])
