"""Triton's generate extension: flat JSON objects to and from tensors, for any model.

Source: Triton's ``docs/protocol/extension_generate.md``, and the answers of a Triton 2.51.
"""

from __future__ import annotations

from collections.abc import Container
from math import prod
from typing import TYPE_CHECKING, Any, Final

import orjson

from headrace.runtimes.datatypes import unpack_bytes
from headrace.server.codecs.kserve_json import parse_object, string
from headrace.server.codecs.kserve_json_data import array_json, values_to_raw
from headrace.server.codecs.kserve_parameters import decode_json_parameters
from headrace.server.errors import InvalidArgumentError, InvalidJsonError
from headrace.server.tasks.infer_validation import full_dims
from headrace.server.tasks.tensors import InferRequest, InferResponse, InputTensor

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor

EXACTLY_ONE: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates "
    "various number of responses"
)
_NESTED: Final = "parameters"


def check_encoding(coding: str) -> None:
    """Refuse a compressed body; ``coding`` is the request's ``Content-Encoding``.

    Raises:
        InvalidArgumentError: anything but ``identity`` or nothing.
    """
    if coding.strip().lower() not in ("", "identity"):
        raise InvalidArgumentError(
            "Unsupported content-encoding, only 'identity' is supported.",
            field="content-encoding",
            value=coding,
        )


def decode_generate(model: Model, version: str, body: bytes) -> InferRequest:
    """Decode a generate request; what the values are worth is not compared with the model yet.

    Members that have the name of an input become that tensor, at the top and inside ``parameters``; others
    are parameters of the request. ``null`` is absent.

    Args:
        model: whose inputs the members are looked for in.
        version: version of the path, "" for none.
        body: JSON.

    Raises:
        InvalidJsonError: not a JSON object, or a value does not fit its input or is no parameter.
        InvalidTensorError: a number is out of range for its input's datatype.
        InvalidArgumentError: a parameter key that is Triton's own.
    """
    if not body:
        raise InvalidJsonError(
            "failed to parse the request JSON buffer: The document is empty. at 0", offset="0"
        )
    specs = {spec.name: spec for spec in model.inputs}
    root = parse_object(body)
    request_id = root.pop("id", None)
    nested = root.pop(_NESTED, None)
    if nested is not None and _NESTED in specs:
        msg = f"Keyword '{_NESTED}' for nested schema also given as input tensor name"
        raise InvalidArgumentError(msg, field=_NESTED)
    if nested is not None and not isinstance(nested, dict):
        msg = f"Expected JSON object for keyword: '{_NESTED}': attempt to access JSON non-object as object"
        raise InvalidJsonError(msg, field=_NESTED)
    inputs: list[InputTensor] = []
    others: dict[str, Any] = {}
    for name, value in (*root.items(), *(nested or {}).items()):
        if value is None:
            continue
        spec = specs.get(name)
        if spec is None:
            others[name] = value
        else:
            inputs.append(_tensor(model, spec, value))
    parameters, _ = decode_json_parameters(others)
    return InferRequest(
        model.name,
        version,
        "" if request_id is None else string(request_id, "id"),
        inputs,
        priority=parameters.priority,
        timeout_us=parameters.timeout_us,
        parameters=parameters.custom,
    )


def _tensor(model: Model, spec: ModelTensor, value: Any) -> InputTensor:
    values = value if isinstance(value, list) else [value]
    shape = _spread(len(values), full_dims(model, spec))
    if shape is None or any(isinstance(element, (list, dict)) for element in values):
        msg = f"The schema can not convert input '{spec.name}' to tensor with proper shape"
        raise InvalidJsonError(msg, field=spec.name, tensor=spec.name)
    data = values_to_raw(values, len(values), spec.datatype, spec.name, model.name)
    return InputTensor(spec.name, spec.datatype, shape, data)


def _spread(count: int, dims: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of ``count`` elements: the innermost size that varies takes all, others are 1.

    None when the sizes that do not vary leave a rest.
    """
    rest, left = divmod(count, prod(size for size in dims if size != -1))
    varying = [place for place, size in enumerate(dims) if size == -1]
    if left or (not varying and rest != 1):
        return None
    innermost = varying[-1] if varying else -1
    return tuple(size if size != -1 else rest if place == innermost else 1 for place, size in enumerate(dims))


def encode_generate(response: InferResponse, documents: Container[str] = ()) -> bytes:
    """Encode a response as one flat object, its members sorted as Triton's are.

    An output of one element is that element, any other a flat list.

    Args:
        response: what the model answered.
        documents: outputs whose elements are JSON texts, written as what they say.

    Raises:
        InvalidArgumentError: an element of ``BYTES`` is not UTF-8.
    """
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model, "model_version": response.version}
    document |= response.parameters
    for output in response.outputs:
        if output.name in documents:
            values = b"[" + b",".join(unpack_bytes(output.data)) + b"]"
        else:
            values = array_json(output)
        document[output.name] = orjson.Fragment(values[1:-1] if prod(output.shape) == 1 else values)
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


class TextEvents:
    """Writes the events of a stream that has nothing but text; the same bytes as :func:`generate_event`."""

    def __init__(self, model: str, version: str, request_id: str) -> None:
        empty = InferResponse(model, version, request_id, [])
        self._head = b"data: " + encode_generate(empty)[:-1] + b',"text_output":'

    def event(self, text: str) -> bytes:
        """Encode one piece."""
        return self._head + orjson.dumps(text) + b"}\n\n"


def generate_event(response: InferResponse, documents: Container[str] = ()) -> bytes:
    """Encode a response as a server-sent event; see :func:`encode_generate`."""
    return b"data: " + encode_generate(response, documents) + b"\n\n"
