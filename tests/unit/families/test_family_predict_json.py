"""Arrays and tables to tensors, and predictions to MLflow's form."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.datatypes import NUMPY_TYPES, pack_bytes, to_array, unpack_bytes
from headrace.server.codecs.predict import decode_inputs, encode_outputs
from headrace.server.errors import HeadraceError, InputEmptyError, InvalidJsonError, InvalidTensorError
from headrace.server.repository.model import ModelTensor
from headrace.server.tasks.tensors import OutputTensor

FOUR = (ModelTensor("x", "FP64", (4,)),)
TWO = (ModelTensor("a", "FP32", (2,)), ModelTensor("b", "INT64", (), optional=False))
ROWS = [[1, 2, 3, 4], [5, 6, 7, 8]]
NAMES = ["p", "q", "r", "s"]


def decoded(body: Any, specs: Any = FOUR, *, batching: bool = True) -> dict[str, Any]:
    tensors = decode_inputs(body, specs, batching=batching)
    return {
        tensor.name: to_array(tensor.datatype, tensor.shape, tensor.data).tolist()
        if tensor.datatype != "BYTES"
        else to_array(tensor.datatype, tensor.shape, tensor.data)
        for tensor in tensors
    }


@pytest.mark.parametrize("body", [
    ROWS,
    [1, 2, 3, 4, 5, 6, 7, 8],
    {"inputs": ROWS},
    {"inputs": [1, 2, 3, 4, 5, 6, 7, 8]},
    {"instances": ROWS},
    {"data": ROWS},
    {"inputs": {"x": ROWS}},
    {"inputs": None, "instances": ROWS, "params": {"zzz": 1}},
    {"instances": [{"x": row} for row in ROWS]},
    {"dataframe_split": {"columns": NAMES, "index": [0, 1], "data": ROWS}},
    {"dataframe_split": {"data": ROWS}},
    {"dataframe_records": [dict(zip(NAMES, row, strict=True)) for row in ROWS]},
    [dict(zip(NAMES, row, strict=True)) for row in ROWS],
    {"inputs": {name: [ROWS[0][index], ROWS[1][index]] for index, name in enumerate(NAMES)}},
    {"dataframe_split": {"columns": ["x"], "data": [[row] for row in ROWS]}},
])  # fmt: skip
def test_every_form_gives_the_same_rows(body: Any) -> None:
    assert decoded(body) == {"x": ROWS}


def test_one_row_needs_no_brackets() -> None:
    assert decoded([1, 2, 3, 4]) == {"x": [[1, 2, 3, 4]]}
    assert decoded({"instances": [dict(zip(NAMES, ROWS[0], strict=True))]}) == {"x": [ROWS[0]]}


def test_named_inputs_of_a_model_with_several() -> None:
    expected = {"a": [[1, 2], [3, 4]], "b": [7, 8]}
    assert decoded({"inputs": {"a": [[1, 2], [3, 4]], "b": [7, 8]}}, TWO) == expected
    assert decoded({"instances": [{"a": [1, 2], "b": 7}, {"b": 8, "a": [3, 4]}]}, TWO) == expected
    assert (
        decoded({"dataframe_split": {"columns": ["b", "a"], "data": [[7, [1, 2]], [8, [3, 4]]]}}, TWO)
        == expected
    )
    with pytest.raises(InvalidTensorError, match="the model takes the inputs a, b; missing b and unknown c"):
        decoded({"inputs": {"a": [1, 2], "c": [1]}}, TWO)
    with pytest.raises(InvalidTensorError, match="the model takes 2 inputs, send an array for each"):
        decoded([1, 2, 3], TWO)


def test_optional_inputs_may_be_left_out() -> None:
    specs = (ModelTensor("a", "FP32", (2,)), ModelTensor("b", "INT64", (), optional=True))
    assert decoded([[1, 2]], specs) == {"a": [[1, 2]]}
    assert decoded({"inputs": {"a": [[1, 2]], "b": None}}, specs) == {"a": [[1, 2]]}


def test_a_size_that_makes_no_whole_rows_names_what_was_expected() -> None:
    ten = (ModelTensor("features", "FP64", (10,)),)
    with pytest.raises(
        InvalidTensorError,
        match=r"input 'features': 3 values do not make rows of 10; expected shape \[-1,10\]",
    ) as caught:
        decoded([1, 2, 3], ten)
    assert caught.value.metadata["expected"] == "FP64[-1,10]"


@pytest.mark.parametrize(("body", "error", "message"), [
    ([[1, 2], [3]], InvalidTensorError, "not a regular array"),
    ([[1, 2, 3]], InvalidTensorError, r"shape \[1,3\] does not fit, expected \[-1,4\]"),
    ([], InputEmptyError, "`inputs` cannot be empty"),
    ([[]], InputEmptyError, "`inputs` cannot be empty"),
    ({"inputs": []}, InputEmptyError, "`inputs` cannot be empty"),
    ([1, 2, 3, "4"], InvalidTensorError, "expected numbers for FP64, got '1'"),
    (["a"], InvalidTensorError, "expected numbers for FP64, got 'a'"),
    ([1, 2, 3, {}], InvalidTensorError, "expected numbers for FP64, got an object"),
    ({"zzz": 1}, InvalidJsonError, "has none of the keys inputs, instances, data, dataframe_split"),
    ({"inputs": {}}, InvalidTensorError, "the model takes the inputs x; missing x"),
    (None, InvalidJsonError, "expected an array or an object, got null"),
    (True, InvalidJsonError, "got a boolean"),
    ("text", InvalidJsonError, "got a string"),
    (5, InvalidJsonError, "got a number"),
    ({"dataframe_split": [1]}, InvalidJsonError, "`dataframe_split`: expected an object"),
    ({"dataframe_split": {"columns": NAMES, "data": [1]}}, InvalidJsonError, "`dataframe_split`: expected"),
    ({"dataframe_split": {"columns": [1], "data": [[1]]}}, InvalidJsonError, "expected an array of names"),
    ({"dataframe_split": {"columns": NAMES, "data": [[1]]}}, InvalidJsonError, "expected 4 values in"),
    ([{"p": 1}, {"q": 2}], InvalidJsonError, "row 1: expected an object with the keys p"),
    ([{"p": 1}, 5], InvalidJsonError, "row 1: expected an object"),
    ({"inputs": {"p": [1], "q": [1, 2]}}, InvalidTensorError, "must be arrays of one length"),
])  # fmt: skip
def test_wrong_bodies(body: Any, error: type[HeadraceError], message: str) -> None:
    with pytest.raises(error, match=message):
        decoded(body)


INTEGERS = [name for name in NUMPY_TYPES if "INT" in name]


@given(name=st.sampled_from(INTEGERS), values=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_integers_never_wrap(name: str, values: list[int]) -> None:
    spec = (ModelTensor("x", name, ()),)
    limits = np.iinfo(NUMPY_TYPES[name])
    if all(limits.min <= value <= limits.max for value in values):
        assert decoded(values, spec) == {"x": values}
    else:
        with pytest.raises(InvalidTensorError, match=f"a value is out of the range of {name}"):
            decoded(values, spec)


@pytest.mark.parametrize(("name", "values"), [
    ("UINT64", [2**63, 1]), ("UINT64", [2**64 - 1, 0]), ("INT64", [-(2**63), 2**63 - 1]), ("INT64", [3.0, 1]),
])  # fmt: skip
def test_large_integers_are_exact(name: str, values: list[Any]) -> None:
    assert decoded(values, (ModelTensor("x", name, ()),)) == {"x": values}


@pytest.mark.parametrize(("name", "values", "message"), [
    ("INT64", [1.5], "expected integers for INT64, got 1.5"),
    ("INT64", [1, 1e300], "expected integers for INT64"),
    ("INT32", [None], "expected numbers for INT32, got null"),
    ("UINT8", ["1"], "expected numbers for UINT8, got '1'"),
    ("FP32", [1e39], "a value is out of the range of FP32"),
    ("FP16", [70000], "a value is out of the range of FP16"),
    ("BF16", [1e39], "a value is out of the range of BF16"),
    ("FP64", [10**400], "a value is out of the range of FP64"),
    ("BOOL", [2], "expected booleans for BOOL, got 2"),
    ("BOOL", [0.5], "expected booleans for BOOL, got 0.5"),
    ("BYTES", [1], "expected strings for BYTES, got 1"),
    ("BYTES", [["a"], ["b", "c"]], "not a regular array"),
])  # fmt: skip
def test_values_that_do_not_fit(name: str, values: Any, message: str) -> None:
    with pytest.raises(InvalidTensorError, match=message):
        decoded(values, (ModelTensor("x", name, ()),))


def test_missing_values_are_nan_in_floats() -> None:
    (row,) = decoded([[1, None, 3.5, 4]])["x"]
    assert row[0] == 1
    assert np.isnan(row[1])


def test_booleans_and_strings() -> None:
    assert decoded([True, 0, 1], (ModelTensor("x", "BOOL", ()),)) == {"x": [True, False, True]}
    (tensor,) = decode_inputs(["é", "b\0"], (ModelTensor("x", "BYTES", ()),), batching=True)
    assert unpack_bytes(tensor.data) == ["é".encode(), b"b\0"]
    (tensor,) = decode_inputs([["a", "b"]], (ModelTensor("x", "BYTES", (2,)),), batching=True)
    assert list(tensor.shape) == [1, 2]


def test_models_without_a_batch_dimension() -> None:
    fixed = (ModelTensor("x", "FP64", (2, 2)),)
    assert decoded([[1, 2], [3, 4]], fixed, batching=False) == {"x": [[1, 2], [3, 4]]}
    assert decoded([1, 2, 3, 4], fixed, batching=False) == {"x": [[1, 2], [3, 4]]}
    free = (ModelTensor("x", "FP64", (-1, 2)),)
    assert decoded([1, 2, 3, 4, 5, 6], free, batching=False) == {"x": [[1, 2], [3, 4], [5, 6]]}
    with pytest.raises(InvalidTensorError, match=r"shape \[3\] does not fit, expected \[2,2\]"):
        decoded([1, 2, 3], fixed, batching=False)
    with pytest.raises(InvalidTensorError, match=r"expected \[-1,2\]"):
        decoded([1, 2, 3], free, batching=False)


def test_dimensions_that_vary() -> None:
    spec = (ModelTensor("x", "FP64", (-1,)),)
    assert decoded([1, 2, 3], spec) == {"x": [[1, 2, 3]]}  # one row
    assert decoded([[1, 2], [3, 4]], spec) == {"x": [[1, 2], [3, 4]]}


def output(name: str, values: Any) -> OutputTensor:
    array = np.asarray(values)
    names = {dtype: name for name, dtype in NUMPY_TYPES.items()}
    return OutputTensor(name, names[array.dtype], array.shape, array.tobytes())


def test_regressor_values_are_flat() -> None:
    body = encode_outputs(
        [output("y", np.array([[1.5], [2.5]]))],
        input_specs=(ModelTensor("x", "FP64", (10,)),),
        output_specs=(ModelTensor("y", "FP64", (1,)),),
        batching=True,
    )
    assert orjson.loads(body) == {
        "data": [1.5, 2.5],
        "meta": {
            "input_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1, 10]}, "type": "tensor"}],
            "output_schema": [{"tensor-spec": {"dtype": "float64", "shape": [-1]}, "type": "tensor"}],
        },
    }


def test_models_with_several_outputs_name_them() -> None:
    outputs = [output("label", np.array([2], np.int64)), output("p", np.array([[0.1, 0.9]], np.float32))]
    specs = (ModelTensor("label", "INT64", ()), ModelTensor("p", "FP32", (2,)))
    body = orjson.loads(encode_outputs(outputs, input_specs=TWO, output_specs=specs, batching=True))
    assert body["data"] == [2]
    assert body["outputs"] == {"label": [2], "p": [[0.1, 0.9]]}
    assert [entry["name"] for entry in body["meta"]["input_schema"]] == ["a", "b"]
    assert body["meta"]["output_schema"] == [
        {"name": "label", "tensor-spec": {"dtype": "int64", "shape": [-1]}, "type": "tensor"},
        {"name": "p", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}, "type": "tensor"},
    ]


@pytest.mark.parametrize(("name", "shown"), [
    ("BOOL", True), ("INT8", 1), ("UINT64", 1), ("FP16", 1.0), ("BF16", 1.0), ("FP32", 1.0),
])  # fmt: skip
def test_every_output_type_can_be_shown(name: str, shown: Any) -> None:
    array = np.ones((1, 2), NUMPY_TYPES[name])
    spec = (ModelTensor("y", name, (2,)),)
    tensor = OutputTensor("y", name, (1, 2), array.tobytes())
    body = orjson.loads(encode_outputs([tensor], input_specs=FOUR, output_specs=spec, batching=True))
    assert body["data"] == [[shown, shown]]


def test_text_outputs() -> None:
    spec = (ModelTensor("y", "BYTES", ()),)
    tensor = OutputTensor("y", "BYTES", (2,), pack_bytes(["é", b"\xff"]))
    body = orjson.loads(encode_outputs([tensor], input_specs=FOUR, output_specs=spec, batching=True))
    assert body["data"] == ["é", "\ufffd"]
    assert body["meta"]["output_schema"][0]["tensor-spec"]["dtype"] == "str"


def test_models_without_batching_keep_the_shape_of_their_outputs() -> None:
    spec = (ModelTensor("y", "FP64", (1, 1)),)
    tensor = output("y", np.array([[1.0]]))
    body = orjson.loads(encode_outputs([tensor], input_specs=FOUR, output_specs=spec, batching=False))
    assert body["data"] == [[1.0]]
    assert body["meta"]["output_schema"][0]["tensor-spec"]["shape"] == [1, 1]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "data", "x", "columns", "instances", "p"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(body=json_values, name=st.sampled_from(sorted(NUMPY_TYPES)), batching=st.booleans())
def test_any_body_gives_tensors_or_a_clear_error(body: Any, name: str, batching: bool) -> None:
    spec = (ModelTensor("x", name, (2,)),)
    try:
        tensors = decode_inputs(body, spec, batching=batching)
    except HeadraceError:
        return
    for tensor in tensors:
        shape = to_array(tensor.datatype, tensor.shape, tensor.data).shape
        assert shape[-1] == 2
        assert len(shape) == (2 if batching else 1)
