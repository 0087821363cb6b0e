"""REST inference bodies to tensor requests: JSON, and JSON followed by binary tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from headrace.runtimes.datatypes import ITEM_SIZES
from headrace.server.codecs.integers import INT64
from headrace.server.codecs.kserve_json import array, boolean, member, members, parse_json, string, unsigned
from headrace.server.codecs.kserve_json_data import values_to_raw
from headrace.server.codecs.kserve_parameters import decode_json_parameters, refuse_shared_memory
from headrace.server.errors import InvalidArgumentError, InvalidTensorError
from headrace.server.tasks.tensors import InferRequest, InputTensor, RequestedOutput

MAX_RANK: Final = 64
"""Dimensions that an array can have."""

_SOURCES: Final = ("data", "binary_data_size", "shared_memory_region")
_SIZE: Final = re.compile(r"[0-9]{1,19}|-[1-9][0-9]{0,18}")
_ONE_SOURCE: Final = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)


@dataclass(frozen=True, slots=True)
class BinaryOutputs:
    """Which outputs go out as binary data instead of JSON.

    Attributes:
        every: all of them; only asked for when the request names no outputs.
        names: these.
    """

    every: bool = False
    names: frozenset[str] = frozenset()


def split_body(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON part and the binary part of a body; no JSON part means a raw binary request.

    Args:
        body: decompressed.
        header: ``Inference-Header-Content-Length``, the size of the JSON part; None when there is none.

    Raises:
        InvalidArgumentError: the header is not a size inside the body.
    """
    if header is None:
        return body, memoryview(b"")
    if not _SIZE.fullmatch(header):
        msg = f"Unable to parse Inference-Header-Content-Length, got: {header}"
        raise InvalidArgumentError(msg, field="inference-header-content-length", value=header)
    size = int(header)
    if not 0 <= size <= len(body):
        msg = f"inference header size should be in range (0, {len(body)}), got: {size}"
        raise InvalidArgumentError(msg, field="inference-header-content-length", value=header)
    return body[:size], memoryview(body)[size:]


def decode_json_request(
    model: str, version: str, document: bytes, binary: memoryview
) -> tuple[InferRequest, BinaryOutputs]:
    """Decode a request whose JSON part is ``document``; tensors are not compared with the model yet.

    Args:
        model: model name of the path; names in the body are ignored.
        version: version of the path, "" for none.
        document: not empty.
        binary: data of the inputs that have ``binary_data_size``, in order.

    Raises:
        InvalidJsonError: not JSON, or a member is missing or of the wrong type.
        InvalidTensorError: an input has no data or more than one kind, values do not fit the datatype, or the
            binary part is too short or too long.
        InvalidArgumentError: wrong parameters.
        UnsupportedError: a tensor in shared memory.
    """
    root = parse_json(document)
    inputs: list[InputTensor] = []
    used = 0
    for entry in array(member(root, "inputs"), "inputs"):
        tensor = _decode_input(entry, model, binary[used:])
        if isinstance(tensor.data, memoryview):
            used += len(tensor.data)
        inputs.append(tensor)
    if used < len(binary):
        raise InvalidTensorError(f"unexpected additional input data for model '{model}'", model=model)
    request_id = root.get("id")
    parameters, all_binary = decode_json_parameters(
        members(root.get("parameters"), "failed to get request params.")
    )
    outputs: list[RequestedOutput] = []
    names: set[str] = set()
    wanted = root.get("outputs")
    for entry in [] if wanted is None else array(wanted, "outputs"):
        output, as_binary = _decode_output(entry)
        outputs.append(output)
        if as_binary:
            names.add(output.name)
    request = InferRequest(
        model, version, "" if request_id is None else string(request_id, "id"), inputs, outputs,
        parameters.priority, parameters.timeout_us, parameters.custom,
    )  # fmt: skip
    return request, BinaryOutputs(all_binary and not outputs, frozenset(names))


def _decode_input(entry: Any, model: str, binary: memoryview) -> InputTensor:
    name = string(member(entry, "name"), "name")
    datatype = string(member(entry, "datatype"), "datatype")
    if datatype not in ITEM_SIZES:
        raise InvalidArgumentError(f"invalid datatype for input {name}", field="datatype", value=datatype)
    shape = tuple(unsigned(size, "shape", most=INT64 - 1) for size in array(member(entry, "shape"), "shape"))
    if len(shape) > MAX_RANK:
        msg = f"input '{name}' for model '{model}' has {len(shape)} dimensions, expected at most {MAX_RANK}"
        raise InvalidTensorError(msg, model=model, tensor=name)
    parameters = members(entry.get("parameters"), "Unable to parse 'parameters'")
    given = [key for key in _SOURCES if key in (entry if key == "data" else parameters)]
    if len(given) != 1:
        shown = "set " + " ".join(f"'{key}'" for key in given) if given else "no field is set"
        raise InvalidTensorError(_ONE_SOURCE + shown, model=model, tensor=name)
    if given[0] == "shared_memory_region":
        refuse_shared_memory()
    if given[0] == "data":
        values = array(entry["data"], "data")
        return InputTensor(name, datatype, shape, values_to_raw(values, prod(shape), datatype, name, model))
    size = unsigned(parameters["binary_data_size"], "binary_data_size")
    if size > len(binary):
        msg = (
            f"unexpected size for input '{name}', expecting {size - len(binary)} additional bytes for model "
            f"'{model}'"
        )
        raise InvalidTensorError(msg, model=model, tensor=name)
    return InputTensor(name, datatype, shape, binary[:size])


def _decode_output(entry: Any) -> tuple[RequestedOutput, bool]:
    """Return the output and whether it is wanted as binary data."""
    name = string(member(entry, "name"), "name")
    parameters = members(entry.get("parameters"), "Unable to parse 'parameters'")
    classification = unsigned(parameters.get("classification", 0), "classification", "set")
    binary = boolean(parameters.get("binary_data", False), "binary_data")
    if "shared_memory_region" in parameters:
        for key, is_set in (("binary_data", binary), ("classification", classification)):
            if is_set:
                msg = f"Output can't set both 'shared_memory_region' and '{key}'"
                raise InvalidArgumentError(msg, field="shared_memory_region")
        refuse_shared_memory()
    return RequestedOutput(name, classification), binary
