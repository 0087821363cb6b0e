"""JSON bodies: parsing, tensor values both ways, and what must be refused."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_tensors import to_raw

from headrace.runtimes.datatypes import NUMPY_TYPES, to_array
from headrace.server.codecs.kserve_json import MAX_DEPTH, parse_json, parse_object
from headrace.server.codecs.kserve_json_data import raw_to_json, values_to_raw
from headrace.server.codecs.kserve_rest_request import BinaryOutputs, decode_json_request, split_body
from headrace.server.codecs.kserve_rest_response import encode_response
from headrace.server.codecs.kserve_values import INTEGER_RANGES
from headrace.server.errors import HeadraceError, InvalidArgumentError, InvalidJsonError, InvalidTensorError
from headrace.server.repository.model import ModelTensor
from headrace.server.tasks.infer_validation import validate
from headrace.server.tasks.tensors import InferRequest, InferResponse, InputTensor, OutputTensor

FLOATS = ("FP16", "BF16", "FP32", "FP64")


def render(datatype: str, raw: bytes, count: int) -> Any:
    return json.loads(orjson.dumps(raw_to_json(OutputTensor("Y", datatype, (count,), raw))))


@given(data=st.data(), datatype=st.sampled_from(sorted(INTEGER_RANGES)))
def test_integers_survive(data: st.DataObject, datatype: str) -> None:
    numbers = data.draw(st.lists(st.integers(*INTEGER_RANGES[datatype]), max_size=30))
    raw = values_to_raw(numbers, len(numbers), datatype, "X", "m")
    assert len(raw) == len(numbers) * NUMPY_TYPES[datatype].itemsize
    assert render(datatype, raw, len(numbers)) == numbers


@given(data=st.data(), datatype=st.sampled_from(FLOATS))
def test_floats_survive(data: st.DataObject, datatype: str) -> None:
    widths = {"FP64": st.floats(width=64), "FP16": st.floats(width=16)}
    drawn = data.draw(st.lists(widths.get(datatype, st.floats(width=32)), max_size=30))
    array = np.array(drawn, np.float64)
    array = array[~np.isnan(array)]
    if datatype == "BF16":
        array = array[np.abs(array) < 1e38]
    numbers = array.astype(NUMPY_TYPES[datatype]).astype(np.float64).tolist()
    raw = values_to_raw(numbers, len(numbers), datatype, "X", "m")
    assert render(datatype, raw, len(numbers)) == numbers


@given(st.lists(st.booleans(), max_size=30))
def test_booleans_survive(flags: list[bool]) -> None:
    raw = values_to_raw(flags, len(flags), "BOOL", "X", "m")
    assert render("BOOL", raw, len(flags)) == flags


@given(st.lists(st.text(max_size=20), max_size=10))
def test_texts_survive(texts: list[str]) -> None:
    raw = values_to_raw(texts, len(texts), "BYTES", "X", "m")
    assert render("BYTES", raw, len(texts)) == texts


@given(value=st.integers(-(1 << 70), 1 << 70), datatype=st.sampled_from(sorted(INTEGER_RANGES)))
def test_integers_never_wrap(value: int, datatype: str) -> None:
    """The whole way from the text: the parser itself makes floats of what 64 bits cannot hold."""
    body = json.dumps({"inputs": [tensor(datatype, [1], [value])]}).encode()
    low, high = INTEGER_RANGES[datatype]
    if low <= value <= high:
        request, _ = decode_json_request("m", "", body, memoryview(b""))
        assert to_array(datatype, (1,), request.inputs[0].data)[0] == value
    else:
        with pytest.raises(InvalidTensorError, match=f"is out of range for datatype {datatype}"):
            decode_json_request("m", "", body, memoryview(b""))


@pytest.mark.parametrize(
    ("datatype", "number"),
    [
        ("INT64", "9223372036854775809.0"),
        ("UINT64", "9223372036854775809.0"),
        ("UINT8", "9223372036854775809.0"),
        ("UINT64", "18446744073709551615e0, 1.5"),
        ("INT32", "Infinity"),
        ("UINT64", "-Infinity"),
        ("INT8", "1, NaN"),
    ],
)
def test_what_is_written_as_no_integer_is_none(datatype: str, number: str) -> None:
    data = parse_json(f"[{number}]".encode())
    kind = "unsigned" if datatype.startswith("U") else "signed"
    with pytest.raises(InvalidJsonError, match=f"access JSON non-{kind}-integer as {kind}-integer"):
        values_to_raw(data, len(data), datatype, "X", "m")


@pytest.mark.parametrize("number", ["-9223372036854775809", "-9223372036854775808.0", "18446744073709551616"])
@pytest.mark.parametrize("datatype", sorted(INTEGER_RANGES))
def test_integers_just_beyond_64_bits_are_out_of_range(datatype: str, number: str) -> None:
    with pytest.raises(InvalidTensorError, match=f"at index 1 .* is out of range for datatype {datatype}"):
        values_to_raw(parse_json(f"[1, {number}]".encode()), 2, datatype, "X", "m")


@pytest.mark.parametrize(
    ("datatype", "value"), [("FP16", 65520.0), ("BF16", 3.4e38), ("FP32", 3.5e38), ("FP32", -1e300)]
)
def test_floats_never_overflow(datatype: str, value: float) -> None:
    with pytest.raises(InvalidTensorError, match=f"is out of range for datatype {datatype}"):
        values_to_raw([0.0, value], 2, datatype, "X", "m")


def test_floats_are_rounded_to_the_nearest() -> None:
    raw = values_to_raw([1.00390625 + 0.003, 2**-24 * 1.5], 2, "BF16", "X", "m")
    assert raw == np.array([1.00390625 + 0.003, 2**-24 * 1.5], ml_dtypes.bfloat16).tobytes()


def tensor(datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": "X", "datatype": datatype, "shape": shape, "data": data}


@pytest.mark.parametrize("datatype", FLOATS)
def test_what_is_not_finite_goes_through(datatype: str) -> None:
    body = b'{"inputs":[{"name":"X","datatype":"%s","shape":[4],"data":[NaN,Infinity,-Infinity,0.5]}]}'
    request, _ = decode_json_request("m", "", body % datatype.encode(), memoryview(b""))
    found = render(datatype, bytes(request.inputs[0].data), 4)
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, 0.5]


def test_many_numbers_with_a_few_that_are_not_finite() -> None:
    array = np.linspace(-5, 5, 1000)
    array[[0, 500, 999]] = math.nan, math.inf, -math.inf
    found = render("FP64", array.tobytes(), 1000)
    np.testing.assert_array_equal(np.array(found), array)


def test_float32_is_written_as_the_double_that_it_is() -> None:
    rendered = orjson.dumps(
        raw_to_json(OutputTensor("Y", "FP32", (2,), np.array([1.1, 3], np.float32).tobytes()))
    )
    assert rendered == b"[1.100000023841858,3.0]"


@pytest.mark.parametrize(("depth", "refused"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True), (50_000, True)])
def test_depth(depth: int, refused: bool) -> None:
    body = b"[" * depth + b"]" * depth
    if not refused:
        parse_json(body)
        return
    with pytest.raises(InvalidJsonError, match=r"JSON nesting depth exceeds maximum allowed limit \(100\)"):
        parse_json(body)


def test_depth_counts_in_the_parser_for_literals_too() -> None:
    with pytest.raises(InvalidJsonError, match="nesting depth"):
        parse_json(b"[" * 50_000 + b"NaN" + b"]" * 50_000)


def test_brackets_in_texts_are_not_depth() -> None:
    text = "[{" * 200 + '\\"[' + '"'
    assert parse_json(orjson.dumps([text] * 3)) == [text] * 3
    assert parse_json(json.dumps([text, math.inf]).encode()) == [text, math.inf]
    with pytest.raises(InvalidJsonError, match="nesting depth"):
        parse_json(b'["\\"]]]]",' + b"[" * 101 + b"]" * 101 + b"]")


def test_wide_is_not_deep() -> None:
    assert len(parse_json(b"[" + b",".join([b"[[1]]"] * 5000) + b"]")) == 5000


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'["\xff", NaN]',
        b"[NaN",
        b"Infinity]",
        b"[" + b"9" * 5000 + b", NaN]",
        b"[NaN, 1" + b"0" * 400 + b"]",
        b"[NaN, 1e400]",
        b"[1NaN]",
        b"[-NaN]",
        b"[Infinity0]",
        rb'["\ud800", NaN]',
        rb'{"\ud800": NaN}',
        b"",
        b"\xef\xbb\xbf[NaN]",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJsonError, match=r"^failed to parse the request JSON buffer: .+\. at \d+$"):
        parse_json(body)


def test_optional_bodies() -> None:
    assert parse_object(b"") == {}
    with pytest.raises(InvalidJsonError):
        parse_object(b"[]")


def test_literals_in_texts_are_texts() -> None:
    parsed = parse_json(rb'["NaN", "\"Infinity", "\\", "\ud83d\ude00", -Infinity]')
    assert parsed == ["NaN", '"Infinity', "\\", "\N{GRINNING FACE}", -math.inf]


def test_integers_beside_literals_are_those_without() -> None:
    numbers = [2**64 - 1, 2**64, -(2**63), -(2**63) - 1]
    alone = parse_json(json.dumps(numbers).encode())
    assert [type(number) for number in alone] == [int, float, int, float]
    with_literal = parse_json(json.dumps([*numbers, math.inf]).encode())[:-1]
    assert list(map(repr, with_literal)) == list(map(repr, alone))


def test_a_text_that_does_not_end_is_read_once() -> None:
    body = b"[" * 101 + b"]" * 101 + b'"' + rb"\"" * 1_000_000
    with pytest.raises(InvalidJsonError, match="nesting depth"):
        parse_json(body)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**63, 0], "Unable to parse 'shape': attempt to access JSON non-unsigned-integer"),
        ([10**30, 0], "Unable to parse 'shape': attempt to access JSON non-unsigned-integer"),
        ([2**63 - 1] * 100_000, "input 'X' for model 'm' has 100000 dimensions, expected at most 64"),
    ],
)
@pytest.mark.parametrize("literal", [None, math.nan])
def test_absurd_shapes_are_refused(shape: list[int], message: str, literal: float | None) -> None:
    body = json.dumps({"inputs": [tensor("FP32", shape, [])], "x": literal}).encode()
    with pytest.raises(InvalidArgumentError, match=f"^{message}"):
        decode_json_request("m", "", body, memoryview(b""))


@pytest.mark.parametrize("literal", [None, math.nan])
def test_a_timeout_beyond_64_bits_is_refused(literal: float | None) -> None:
    body = json.dumps({"inputs": [], "parameters": {"timeout": 2**64}, "x": literal}).encode()
    with pytest.raises(InvalidJsonError, match="Unable to parse 'timeout'"):
        decode_json_request("m", "", body, memoryview(b""))


@pytest.mark.parametrize("outputs", [0, "", False, {}])
def test_outputs_are_a_list(outputs: Any) -> None:
    body = json.dumps({"inputs": [], "outputs": outputs}).encode()
    with pytest.raises(InvalidJsonError, match=r"Unable to parse 'outputs': .* non-array as array"):
        decode_json_request("m", "", body, memoryview(b""))


@pytest.mark.parametrize("header", ["1_0", "-0", "+1", " 1", "\u0661", "1.0", "", "9" * 5000])
def test_odd_sizes_of_the_json_part_are_refused(header: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        split_body(bytes(20), header)
    assert caught.value.message == f"Unable to parse Inference-Header-Content-Length, got: {header}"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["X", *NUMPY_TYPES]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "datatype",
                    "shape",
                    "data",
                    "parameters",
                    "binary_data_size",
                    "id",
                    "x",
                    "outputs",
                    "classification",
                    "binary_data",
                    "priority",
                    "binary_data_output",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
LIKELY_INPUT = st.fixed_dictionaries(
    {"name": st.just("X"), "datatype": st.sampled_from(sorted(NUMPY_TYPES)), "shape": st.just([2])},
    optional={"data": st.lists(JSON, min_size=2, max_size=2), "parameters": JSON},
)


def check_against_model(tensor: InputTensor) -> None:
    """Whatever is accepted for a model of the tensor's own datatype can be seen as an array."""
    model: Any = SimpleNamespace(
        name="m",
        max_batch_size=0,
        inputs=(ModelTensor(tensor.name, tensor.datatype, (-1,)),),
        outputs=(),
        config=SimpleNamespace(parameters={}),
    )
    with contextlib.suppress(InvalidTensorError):
        validate(model, InferRequest("m", inputs=[tensor]))
        if tensor.data:
            assert to_array(tensor.datatype, tensor.shape, tensor.data).shape == tuple(tensor.shape)


@given(
    inputs=JSON | st.lists(LIKELY_INPUT, max_size=2),
    rest=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), JSON, max_size=3),
    binary=st.binary(max_size=20),
)
def test_any_json_is_decoded_or_refused(inputs: Any, rest: dict[str, Any], binary: bytes) -> None:
    body = json.dumps({"inputs": inputs, **rest}).encode()
    with contextlib.suppress(HeadraceError):
        request, _ = decode_json_request("m", "1", body, memoryview(binary))
        assert len(request.inputs) == len(inputs)
        for tensor in request.inputs:
            check_against_model(tensor)


@given(body=st.binary(max_size=60), header=st.none() | st.integers(-5, 80).map(str) | st.text(max_size=5))
def test_any_header_splits_the_body_or_is_refused(body: bytes, header: str | None) -> None:
    with contextlib.suppress(InvalidArgumentError):
        document, binary = split_body(body, header)
        assert document + bytes(binary) == body


@given(
    data=st.data(),
    datatype=st.sampled_from(sorted(set(NUMPY_TYPES) - {"BYTES"})),
    wanted=st.sets(st.integers(0, 2)),
)
def test_binary_outputs_can_be_read_back(data: st.DataObject, datatype: str, wanted: set[int]) -> None:
    """What a client does: split at the size, take the buffers in order."""
    arrays = [np.ones(data.draw(st.integers(0, 5)), NUMPY_TYPES[datatype]) for _ in range(3)]
    outputs = [OutputTensor(str(n), datatype, a.shape, bytes(to_raw(a)[1])) for n, a in enumerate(arrays)]
    binary = BinaryOutputs(names=frozenset(map(str, wanted)))
    body = encode_response(InferResponse("m", "1", "", outputs), binary)
    size = len(body.content) if body.json_size is None else body.json_size
    document, rest = json.loads(body.content[:size]), body.content[size:]
    for entry, array in zip(document["outputs"], arrays, strict=True):
        if int(entry["name"]) in wanted:
            length = entry["parameters"]["binary_data_size"]
            assert rest[:length] == array.tobytes()
            rest = rest[length:]
        else:
            assert entry["data"] == array.astype(float).tolist()
    assert rest == b""
