"""Classical models over JSON: arrays and tables to a model's tensors, outputs to ``data`` and ``meta``.

A body is an array, or an object with one of MLflow's keys: ``inputs``, ``instances``, ``data`` (an array,
rows as objects, or an object of arrays by name), ``dataframe_split`` or ``dataframe_records`` (tables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.runtimes.datatypes import BYTES, NUMPY_TYPES, to_array
from headrace.server.codecs.json_arrays import to_tensor
from headrace.server.codecs.json_body import encode
from headrace.server.errors import InvalidJsonError, InvalidTensorError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.server.repository.model import ModelTensor
    from headrace.server.tasks.tensors import InputTensor, OutputTensor

KEYS: Final = ("inputs", "instances", "data", "dataframe_split", "dataframe_records")


def decode_inputs(body: Any, specs: Sequence[ModelTensor], *, batching: bool) -> list[InputTensor]:
    """Convert a parsed body to the tensors of a model.

    Args:
        body: parsed JSON, see the module.
        specs: the model's inputs.
        batching: whether the model's tensors have a batch dimension before ``dims``.

    Raises:
        InvalidJsonError: the body has none of these forms.
        InputEmptyError: there are no rows.
        InvalidTensorError: an input is missing or unknown, or its values do not fit datatype or shape.
    """
    values = _by_input(_payload(body), specs)
    return [to_tensor(spec, values[spec.name], batching=batching) for spec in specs if spec.name in values]


def _payload(body: Any) -> Any:
    """Return the array, the object of arrays, or the rows as objects that the body holds."""
    if isinstance(body, list):
        return body
    if not isinstance(body, dict):
        raise InvalidJsonError(f"the body: expected an array or an object, got {_kind(body)}")
    for key in KEYS:
        value = body.get(key)
        if value is not None:
            return _split_table(value) if key == "dataframe_split" else value
    raise InvalidJsonError(f"the body has none of the keys {', '.join(KEYS)}", field="inputs")


def _split_table(table: Any) -> Any:
    """Turn ``{"columns": […], "data": [[…], …]}`` into columns by name, or bare rows where there are none."""
    rows = table.get("data") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InvalidJsonError(
            "`dataframe_split`: expected an object with `columns` and `data`, an array of rows",
            field="dataframe_split",
        )
    columns = table.get("columns")
    if columns is None:
        return rows
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise InvalidJsonError(
            "`dataframe_split.columns`: expected an array of names", field="dataframe_split.columns"
        )
    if len(set(columns)) < len(columns) or any(len(row) != len(columns) for row in rows):
        raise InvalidJsonError(
            f"`dataframe_split.data`: expected {len(columns)} values in every row, one for each column, "
            "and the columns must have different names",
            field="dataframe_split.data",
        )
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


def _by_input(payload: Any, specs: Sequence[ModelTensor]) -> Mapping[str, Any]:
    """Assign values to the model's inputs by name."""
    if isinstance(payload, list) and payload and isinstance(payload[0], dict):
        payload = _columns(payload)
    required = [spec.name for spec in specs if not spec.optional]
    if isinstance(payload, dict):
        known = [spec.name for spec in specs]
        present = {name: value for name, value in payload.items() if value is not None}
        unknown = [name for name in present if name not in known]
        if not unknown and all(name in present for name in required):
            return present
        if len(required) == 1 and len(unknown) == len(present) and present:
            return {required[0]: _rows(present)}  # a table whose columns are the features of the one input
        missing = [name for name in required if name not in present]
        wrong = [f"missing {', '.join(missing)}"] if missing else []
        wrong += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise InvalidTensorError(
            f"the model takes the inputs {', '.join(known)}; {' and '.join(wrong)}",
            tensor=(missing or unknown)[0],
        )
    if len(required) != 1:
        raise InvalidTensorError(
            f"the model takes {len(required)} inputs, send an array for each as "
            f'{{"inputs": {{{", ".join(f"{chr(34)}{name}{chr(34)}: …" for name in required)}}}}}',
            tensor=required[0] if required else "",
        )
    return {required[0]: payload}


def _columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Turn rows as objects into columns by name, in the order of the first row."""
    names = list(rows[0])
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or len(row) != len(names) or any(name not in row for name in names):
            raise InvalidJsonError(f"row {index}: expected an object with the keys {', '.join(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _rows(columns: Mapping[str, Any]) -> list[list[Any]]:
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise InvalidTensorError(f"the columns {', '.join(columns)} must be arrays of one length")
    return [list(row) for row in zip(*columns.values(), strict=True)]


def _kind(value: Any) -> str:
    return {bool: "a boolean", str: "a string", type(None): "null"}.get(type(value), "a number")


def encode_outputs(
    outputs: Sequence[OutputTensor],
    *,
    input_specs: Sequence[ModelTensor],
    output_specs: Sequence[ModelTensor],
    batching: bool,
) -> bytes:
    """Encode a prediction with its MLflow-style signature.

    ``data`` is the first output; one value per row makes a flat array. A model with several outputs also has
    them all by name in ``outputs``, and its signature names them.
    """
    values = [
        _values(output, spec, batching=batching) for output, spec in zip(outputs, output_specs, strict=True)
    ]
    batch = [-1] if batching else []
    inputs = {spec.name: (spec.datatype, batch + list(spec.dims)) for spec in input_specs}
    results = {
        spec.name: (spec.datatype, batch + list(_row_dims(spec, spec.dims) if batching else spec.dims))
        for spec in output_specs
    }
    body: dict[str, Any] = {
        "data": values[0],
        "meta": {"input_schema": _schema(inputs), "output_schema": _schema(results)},
    }
    if len(outputs) > 1:
        body["outputs"] = {output.name: value for output, value in zip(outputs, values, strict=True)}
    return encode(body)


def _values(output: OutputTensor, spec: ModelTensor, *, batching: bool) -> NDArray[Any] | list[Any]:
    array = to_array(output.datatype, output.shape, output.data)
    array = array.reshape((array.shape[0], *_row_dims(spec, array.shape[1:])) if batching else array.shape)
    if output.datatype == BYTES:
        texts = np.empty(array.size, dtype=object)
        texts[:] = [element.decode(errors="replace") for element in array.ravel().tolist()]
        nested: list[Any] = texts.reshape(array.shape).tolist()
        return nested
    return array.astype(np.float32) if output.datatype == "BF16" else np.ascontiguousarray(array)


def _row_dims(spec: ModelTensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out the dimensions of an output that has one value per row."""
    return () if all(size == 1 for size in spec.dims) else dims


def _schema(shapes: Mapping[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
    """Describe tensors as MLflow's ``tensor-spec``; a single tensor has no name."""
    schema: list[dict[str, Any]] = []
    for name, (datatype, shape) in shapes.items():
        dtype = "str" if datatype == BYTES else NUMPY_TYPES[datatype].name
        entry: dict[str, Any] = {} if len(shapes) == 1 else {"name": name}
        schema.append({**entry, "tensor-spec": {"dtype": dtype, "shape": shape}, "type": "tensor"})
    return schema
