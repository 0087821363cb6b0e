"""The classification extension."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_tensors import to_raw

from headrace.runtimes.datatypes import NUMPY_TYPES, unpack_bytes
from headrace.server.codecs.kserve_values import INTEGER_RANGES
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tensors import OutputTensor
from headrace.server.tasks.top_classes import MAX_ELEMENTS, top_classes


def output(array: np.ndarray) -> OutputTensor:
    datatype, raw = to_raw(array)
    return OutputTensor("Y", datatype, array.shape, raw)


def texts(result: OutputTensor) -> list[str]:
    return [element.decode() for element in unpack_bytes(result.data)]


def test_values_indices_and_labels() -> None:
    result = top_classes(output(np.array([[0.1, 3, -2]], np.float32)), 2, ("cat", ""), batching=True)
    assert (result.datatype, tuple(result.shape)) == ("BYTES", (1, 2))
    assert texts(result) == ["3.000000:1", "0.100000:0:cat"]


def test_without_batching_all_elements_are_one_row() -> None:
    result = top_classes(output(np.array([[1, 5], [7, 2]], np.int64)), 3, (), batching=False)
    assert (tuple(result.shape), texts(result)) == ((3,), ["7:2", "5:1", "2:3"])


def test_rows_of_several_dimensions() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    result = top_classes(output(array), 1, (), batching=True)
    assert (tuple(result.shape), texts(result)) == ((2, 1), ["5:5", "11:5"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e30, "1000000000000000019884624838656.000000"),
        (-0.0, "-0.000000"),
        (np.inf, "inf"),
        (2 / 3, "0.666667"),
    ],
)
def test_floats_are_written_as_c_does(value: float, text: str) -> None:
    assert texts(top_classes(output(np.array([value], np.float64)), 1, (), batching=False)) == [f"{text}:0"]


def test_nan_ranks_last() -> None:
    array = np.array([np.nan, -np.inf, 1], np.float32)
    result = top_classes(output(array), 3, (), batching=False)
    assert texts(result)[0] == "1.000000:2"
    assert "nan:0" in texts(result)


@given(data=st.data(), datatype=st.sampled_from([*sorted(INTEGER_RANGES), "FP32", "FP64"]))
def test_order_is_descending_and_stable(data: st.DataObject, datatype: str) -> None:
    if datatype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[datatype]
        element = st.sampled_from([low, low + 1, 0, 1, high - 1, high])
        values: list[float] = list(data.draw(st.lists(element, min_size=1, max_size=20)))
    else:
        values = data.draw(st.lists(st.sampled_from([-1.5, 0.0, 2.25]), min_size=1, max_size=20))
    count = data.draw(st.integers(1, 25))
    array = np.array(values, NUMPY_TYPES[datatype])
    result = texts(top_classes(output(array), count, (), batching=False))
    indices = [int(text.split(":")[1]) for text in result]
    assert indices == sorted(range(len(values)), key=lambda index: -values[index])[:count]


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_what_cannot_be_ranked(datatype: str) -> None:
    array = np.array([b"x"], object) if datatype == "BYTES" else np.ones(1, NUMPY_TYPES[datatype])
    message = f"^class result not available for output due to unsupported type '{datatype}'$"
    with pytest.raises(InvalidArgumentError, match=message):
        top_classes(output(array), 1, (), batching=False)


def test_too_many_elements() -> None:
    with pytest.raises(InvalidArgumentError, match="classification output tensor too large"):
        top_classes(output(np.zeros(MAX_ELEMENTS + 1, np.int8)), 1, (), batching=False)


def test_empty_batch_and_empty_rows() -> None:
    assert tuple(top_classes(output(np.empty((0, 3), np.int8)), 2, (), batching=True).shape) == (0, 0)
    assert tuple(top_classes(output(np.empty((2, 0), np.int8)), 2, (), batching=True).shape) == (2, 0)
