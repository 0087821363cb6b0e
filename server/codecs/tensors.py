"""``ModelInferRequest`` and ``ModelInferResponse`` to and from tensors. Raw data is not touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.kserve.v2.grpc_service_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from headrace.server.codecs.kserve_contents import contents_to_raw
from headrace.server.codecs.kserve_parameters import (
    NO_PARAMETERS,
    decode_classification,
    decode_parameters,
    refuse_shared_memory,
)
from headrace.server.errors import InvalidTensorError
from headrace.server.tasks.tensors import InferRequest, InputTensor, RequestedOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.tasks.tensors import InferResponse, Parameter


def decode_request(message: ModelInferRequest, raw: Sequence[bytes | memoryview]) -> InferRequest:
    """Decode a request; tensors are not compared with the model yet.

    The data of an input is its ``contents``, else the next element of ``raw``, the request's
    ``raw_input_contents``.

    Raises:
        InvalidTensorError: an input has no data or data in both forms, raw elements are left over, or typed
            data does not fit its datatype.
        InvalidArgumentError: wrong parameters.
        UnsupportedError: an input or output in shared memory.
    """
    model = message.model_name
    inputs = _decode_inputs(message, raw, model)
    parameters = decode_parameters(message.parameters) if message.parameters else NO_PARAMETERS
    outputs = [
        RequestedOutput(output.name, decode_classification(output.parameters) if output.parameters else 0)
        for output in message.outputs
    ]
    return InferRequest(
        model, message.model_version, message.id, inputs, outputs,
        parameters.priority, parameters.timeout_us, parameters.custom,
    )  # fmt: skip


def _decode_inputs(
    message: ModelInferRequest, raw: Sequence[bytes | memoryview], model: str
) -> list[InputTensor]:
    count, used = len(raw), 0
    inputs: list[InputTensor] = []
    data: bytes | memoryview
    for tensor in message.inputs:
        name, datatype = tensor.name, tensor.datatype
        if tensor.parameters and "shared_memory_region" in tensor.parameters:
            refuse_shared_memory()
        if tensor.HasField("contents"):
            if count:
                msg = (
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{name}' for model '{model}'"
                )
                raise InvalidTensorError(msg, model=model, tensor=name)
            data = contents_to_raw(tensor.contents, datatype, name, model)
        elif used < count:
            data = raw[used]
            used += 1
        else:
            msg = f"unable to find data for input tensor '{name}' for model '{model}' in request."
            raise InvalidTensorError(msg, model=model, tensor=name)
        inputs.append(InputTensor(name, datatype, tuple(tensor.shape), data))
    if used < count:
        msg = (
            f"unexpected additional raw_input_contents for model '{model}': got {count} elements, but the "
            f"request has {used} inputs"
        )
        raise InvalidTensorError(msg, model=model)
    return inputs


def encode_response(response: InferResponse) -> ModelInferResponse:
    """Encode a response; the data of every output is in ``raw_output_contents``."""
    message = ModelInferResponse()
    fill_response(message, response)
    return message


def fill_response(message: ModelInferResponse, response: InferResponse) -> None:
    """Encode a response into an empty message: putting a finished one into another would copy its data."""
    message.model_name = response.model
    message.model_version = response.version
    message.id = response.id
    add, raw = message.outputs.add, message.raw_output_contents.append
    for output in response.outputs:
        add(name=output.name, datatype=output.datatype, shape=output.shape)
        raw(output.data)
    for key, value in response.parameters.items():
        message.parameters[key].CopyFrom(encode_parameter(value))


def encode_parameter(value: Parameter) -> InferParameter:
    """Encode one parameter; integers that only fit 64 unsigned bits go as such."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(uint64_param=value) if value >= 1 << 63 else InferParameter(int64_param=value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    return InferParameter(string_param=value)
