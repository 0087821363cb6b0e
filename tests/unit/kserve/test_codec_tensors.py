"""gRPC requests and responses to tensors and back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kserve.v2.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from headrace.runtimes.datatypes import ITEM_SIZES, NUMPY_TYPES, pack_bytes, to_array
from headrace.server.codecs.kserve_contents import contents_to_raw
from headrace.server.codecs.kserve_values import INTEGER_RANGES
from headrace.server.codecs.tensors import decode_request, encode_parameter, encode_response
from headrace.server.errors import HeadraceError, InvalidTensorError
from headrace.server.tasks.tensors import InferResponse, OutputTensor, Parameter

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
RAW_ONLY = set(NUMPY_TYPES) - set(FIELDS)


def values(datatype: str) -> st.SearchStrategy[list[Any]]:
    element: st.SearchStrategy[Any]
    if datatype == "BYTES":
        element = st.binary(max_size=20)
    elif datatype == "BOOL":
        element = st.booleans()
    elif datatype.startswith("FP"):
        element = st.floats(width=32 if datatype == "FP32" else 64)
    else:
        element = st.integers(*INTEGER_RANGES[datatype])
    return st.lists(element, max_size=40)


@given(data=st.data(), datatype=st.sampled_from(sorted(FIELDS)))
def test_typed_to_raw_and_back(data: st.DataObject, datatype: str) -> None:
    given_values = data.draw(values(datatype))
    contents = InferTensorContents()
    getattr(contents, FIELDS[datatype]).extend(given_values)
    raw = contents_to_raw(contents, datatype, "X", "m")
    found = to_array(datatype, (len(given_values),), raw) if raw else np.empty(0)
    if datatype == "BYTES":
        assert found.tolist() == given_values
    else:
        np.testing.assert_array_equal(found, np.array(given_values, NUMPY_TYPES[datatype]))


@given(
    value=st.integers(-(1 << 31), (1 << 31) - 1),
    datatype=st.sampled_from(["INT8", "INT16", "INT32"]),
    position=st.integers(0, 3),
)
def test_signed_integers_are_kept_or_refused(value: int, datatype: str, position: int) -> None:
    numbers = [0] * 4
    numbers[position] = value
    check_integers(InferTensorContents(int_contents=numbers), datatype, value, position)


@given(value=st.integers(0, (1 << 32) - 1), datatype=st.sampled_from(["UINT8", "UINT16", "UINT32"]))
def test_unsigned_integers_are_kept_or_refused(value: int, datatype: str) -> None:
    check_integers(InferTensorContents(uint_contents=[value]), datatype, value, 0)


def check_integers(contents: InferTensorContents, datatype: str, value: int, position: int) -> None:
    low, high = INTEGER_RANGES[datatype]
    if low <= value <= high:
        array = to_array(datatype, (-1,), contents_to_raw(contents, datatype, "X", "m"))
        assert array[position] == value
        return
    with pytest.raises(InvalidTensorError) as caught:
        contents_to_raw(contents, datatype, "X", "m")
    assert caught.value.message == (
        f"value {value} at index {position} of input 'X' for model 'm' is out of range for datatype "
        f"{datatype}, expected {low} to {high}"
    )


def test_unknown_fields_do_not_become_data() -> None:
    wire = InferTensorContents(fp32_contents=[1.0, 2.0]).SerializeToString() + bytes([0xF8, 0x01, 0x05])
    contents = InferTensorContents.FromString(wire)
    assert contents_to_raw(contents, "FP32", "X", "m") == np.array([1, 2], np.float32).tobytes()


def test_raw_data_is_passed_on_as_it_is() -> None:
    data = bytes(range(256)) * 300
    message = ModelInferRequest(model_name="m", raw_input_contents=[data])
    message.inputs.add(name="X", datatype="UINT8", shape=[len(data)])
    request = decode_request(message, message.raw_input_contents)
    assert type(request.inputs[0].data) is bytes
    assert request.inputs[0].data == data
    assert request.inputs[0].shape == (len(data),)


def test_typed_and_raw_may_not_be_mixed_even_when_the_raw_element_is_empty() -> None:
    message = ModelInferRequest(model_name="m", raw_input_contents=[b""])
    message.inputs.add(name="X", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    with pytest.raises(InvalidTensorError, match="contents field must not be specified"):
        decode_request(message, message.raw_input_contents)


def test_parameters_of_the_model_keep_their_types() -> None:
    message = ModelInferRequest(model_name="m", id="7", model_version="3")
    given_values: dict[str, Parameter] = {"a": True, "b": -5, "c": 1.5, "d": "x"}
    for key, value in given_values.items():
        message.parameters[key].CopyFrom(encode_parameter(value))
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 99
    message.parameters["sequence_id"].int64_param = 4
    request = decode_request(message, message.raw_input_contents)
    assert request.parameters == given_values
    assert {key: type(value) for key, value in request.parameters.items()} == {
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
    }
    assert (request.model, request.version, request.id) == ("m", "3", "7")
    assert (request.priority, request.timeout_us) == (2, 99)


def test_response_has_every_output_raw_and_its_parameters() -> None:
    outputs = [OutputTensor("A", "INT8", (2,), b"\x01\x02"), OutputTensor("B", "BYTES", (0,), b"")]
    response = InferResponse("m", "1", "id", outputs, {"big": 1 << 63, "small": -1, "on": False, "text": "t"})
    message = encode_response(response)
    assert list(message.raw_output_contents) == [b"\x01\x02", b""]
    assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
        ("A", "INT8", [2]),
        ("B", "BYTES", [0]),
    ]
    assert not any(output.HasField("contents") for output in message.outputs)
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in message.parameters.items()}
    assert kinds == {
        "big": "uint64_param",
        "small": "int64_param",
        "on": "bool_param",
        "text": "string_param",
    }
    assert ModelInferResponse.FromString(message.SerializeToString()) == message


NAMES = st.sampled_from(["INPUT0", "INPUT1", "", "x"])
PARAMETER = st.sampled_from(
    [
        {},
        {"bool_param": True},
        {"int64_param": -1},
        {"int64_param": 1},
        {"string_param": "s"},
        {"double_param": 1.5},
        {"uint64_param": 7},
    ]
)
KEYS = st.sampled_from(
    [
        "priority",
        "timeout",
        "sequence_id",
        "sequence_start",
        "triton_x",
        "custom",
        "classification",
        "shared_memory_region",
        "triton_enable_empty_final_response",
    ]
)
PARAMETERS = st.dictionaries(KEYS, PARAMETER, max_size=2)
CONTENTS = st.one_of(
    st.none(),
    st.builds(lambda v: {"int_contents": v}, st.lists(st.integers(-300, 300), max_size=4)),
    st.builds(lambda v: {"fp32_contents": v}, st.lists(st.floats(width=32), max_size=4)),
    st.builds(lambda v: {"bytes_contents": v, "bool_contents": [True]}, st.lists(st.binary(), max_size=2)),
)
INPUT = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from([*ITEM_SIZES, "", "int8"]),
        "shape": st.lists(st.integers(-2, 1 << 62), max_size=3),
        "parameters": PARAMETERS,
        "contents": CONTENTS,
    }
)
OUTPUT = st.fixed_dictionaries({"name": NAMES, "parameters": PARAMETERS})


@given(
    inputs=st.lists(INPUT, max_size=3),
    outputs=st.lists(OUTPUT, max_size=2),
    raw=st.lists(st.binary(max_size=64), max_size=3),
    parameters=PARAMETERS,
)
def test_any_message_is_decoded_or_refused(
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    raw: list[bytes],
    parameters: dict[str, Any],
) -> None:
    message = ModelInferRequest(
        model_name="m", inputs=inputs, outputs=outputs, raw_input_contents=raw, parameters=parameters
    )
    with contextlib.suppress(HeadraceError):
        request = decode_request(message, message.raw_input_contents)
        assert [tensor.name for tensor in request.inputs] == [entry["name"] for entry in inputs]
        assert all(isinstance(tensor.data, bytes) for tensor in request.inputs)


@given(st.binary(max_size=300))
def test_any_bytes_that_are_a_message_are_decoded_or_refused(data: bytes) -> None:
    message = ModelInferRequest()
    try:
        message.MergeFromString(data)
    except Exception:  # noqa: BLE001 - not a message; the library's error class is not public
        return
    with contextlib.suppress(HeadraceError):
        decode_request(message, message.raw_input_contents)


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_bytes_elements_survive(elements: list[bytes]) -> None:
    contents = InferTensorContents(bytes_contents=elements)
    assert contents_to_raw(contents, "BYTES", "X", "m") == pack_bytes(elements)
