"""Arrays inside blocks of bytes: what is viewed, what is copied, and where outputs lie."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.blocks import ALIGNMENT, read_block, write_block
from headrace.runtimes.datatypes import pack_bytes
from headrace.runtimes.wire import Tensor


def written(arrays: dict[str, NDArray[Any]]) -> tuple[tuple[Tensor, ...], bytearray]:
    blocks: list[bytearray] = []

    def allocate(size: int) -> memoryview:
        blocks.append(bytearray(size))
        return memoryview(blocks[0])

    tensors, size = write_block(arrays, allocate)
    assert len(blocks[0]) == size
    return tensors, blocks[0]


@given(
    st.lists(
        hnp.arrays(
            st.sampled_from([np.bool_, np.uint8, np.int16, np.float16, np.int32, np.float64]).map(np.dtype),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
            elements={"allow_nan": False},
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read(arrays: list[NDArray[Any]]) -> None:
    named = {f"t{number}": array for number, array in enumerate(arrays)}
    tensors, block = written(named)
    assert all(tensor.offset % ALIGNMENT == 0 for tensor in tensors)
    result = read_block(tensors, bytes(block))
    assert list(result) == list(named)
    for name, array in named.items():
        assert (result[name].dtype, result[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(result[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int64)[::-3],
        np.arange(4, dtype=">i4"),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array(7, np.int16),
    ],
    ids=["transposed", "strided", "big-endian", "bfloat16", "scalar"],
)
def test_unusual_arrays(array: NDArray[Any]) -> None:
    tensors, block = written({"x": array})
    result = read_block(tensors, bytes(block))["x"]
    assert result.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(result, array)


def test_text_says_where_its_rows_end() -> None:
    texts = np.array([[b"a", "é"], [b"", b"long"]], dtype=object)
    tensors, block = written({"flags": np.ones(3, np.bool_), "texts": texts})
    assert [(tensor.offset, tensor.size) for tensor in tensors] == [(0, 3), (64, 19 + 4)]
    assert tensors[0].row_ends is None
    assert tensors[1].row_ends == (5 + 6, 5 + 6 + 4 + 8)
    assert read_block(tensors, bytes(block))["texts"].tolist() == [[b"a", "é".encode()], [b"", b"long"]]


def test_every_element_of_a_text_vector_is_a_row() -> None:
    for texts in (np.array([b"ab", b"c"]), np.array(["ab", "c"], dtype=object)):
        tensors, block = written({"x": texts})
        assert tensors[0].row_ends == (6, 11)
        assert bytes(block) == pack_bytes([b"ab", b"c"])


def test_inputs_are_views_of_the_block() -> None:
    block = bytearray(np.arange(4, dtype=np.float32).tobytes())
    array = read_block([Tensor("x", "FP32", (4,), 0, 16)], memoryview(block))["x"]
    block[:4] = np.float32(9).tobytes()
    assert array.tolist() == [9, 1, 2, 3]


def test_misaligned_inputs_are_copied() -> None:
    block = b"\x00" + np.arange(4, dtype=np.float32).tobytes()
    array = read_block([Tensor("x", "FP32", (4,), 1, 16)], block)["x"]
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (Tensor("x", "FP32", (3,), 0, 8), r"input 'x' \(FP32 \[3\]\): cannot reshape"),
        (Tensor("x", "FP32", (2,), 0, 7), "buffer size must be a multiple"),
        (Tensor("x", "FP32", (4,), 0, 16), "cannot reshape"),
        (Tensor("x", "BYTES", (1,), 0, 8), "expecting string of length"),
        (Tensor("x", "FP8", (8,), 0, 8), "input 'x' has unknown datatype 'FP8'"),
    ],
)
def test_bytes_that_do_not_fit(tensor: Tensor, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_block([tensor], b"\x09\x00\x00\x00\x00\x00\x00\x00")
