"""Triton's classification extension: an output's top n values per row as ``value:index[:label]`` text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.runtimes.datatypes import BYTES, pack_bytes, to_array
from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.tensors import OutputTensor

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

MAX_ELEMENTS: Final = 1_000_000
_FLOATS: Final = frozenset({"FP32", "FP64"})
_RANKED: Final = _FLOATS | {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}


def check_datatype(datatype: str) -> None:
    """Check that values of ``datatype`` can be ranked.

    Raises:
        InvalidArgumentError: they cannot.
    """
    if datatype not in _RANKED:
        msg = f"class result not available for output due to unsupported type '{datatype}'"
        raise InvalidArgumentError(msg, field="classification", value=datatype)


def top_classes(output: OutputTensor, count: int, labels: Sequence[str], *, batching: bool) -> OutputTensor:
    """Replace ``output`` by the texts of its ``count`` largest values.

    Args:
        output: the values; all dimensions but the batch count as one list of classes.
        count: how many to keep per row, at least 1; fewer come back when a row has fewer.
        labels: class names by index, may be shorter than the row.
        batching: whether the first dimension is the batch.

    Returns:
        A ``BYTES`` tensor of shape (batch, n) or, without batching, (n,). Equal values keep their index
        order; NaN ranks last.

    Raises:
        InvalidArgumentError: the datatype cannot be ranked, or there are too many elements.
    """
    check_datatype(output.datatype)
    values = to_array(output.datatype, output.shape, output.data)
    if values.size > MAX_ELEMENTS:
        msg = f"classification output tensor too large: {values.size} elements, at most {MAX_ELEMENTS}"
        raise InvalidArgumentError(msg, field="classification", value=str(values.size))
    batch = int(output.shape[0]) if batching and output.shape else 1
    values = values.reshape(batch, values.size // batch if batch else 0)
    order = _descending(values)[:, :count]
    kept = np.take_along_axis(values, order, axis=1)
    form = "%f".__mod__ if output.datatype in _FLOATS else str
    texts = [
        f"{form(value)}:{index}:{labels[index]}"
        if index < len(labels) and labels[index]
        else f"{form(value)}:{index}"
        for value, index in zip(kept.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    shape = order.shape if batching else order.shape[1:]
    return OutputTensor(output.name, BYTES, shape, pack_bytes(texts))


def _descending(values: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of each row from the largest value to the smallest, equal ones in index order."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -np.inf, values)
    # A stable ascending sort of the mirrored row, mirrored back: negating would overflow for integers.
    mirrored = np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1]
    order: NDArray[np.intp] = values.shape[1] - 1 - mirrored
    return order
