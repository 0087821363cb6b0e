"""Whether a tensor request fits its model: names, batch, datatypes, shapes, sizes.

The checks, their order and their texts are those of Triton's inference request normalisation, so that clients
which match on them keep working. Inputs are looked at from the last to the first, as Triton reports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.runtimes.datatypes import BYTES, ITEM_SIZES
from headrace.server.errors import InvalidTensorError
from headrace.server.tasks.infer_bytes import check_elements
from headrace.server.tasks.infer_names import check_outputs, inputs_by_name, request_prefix

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.tasks.tensors import InferRequest, InputTensor

MAX_SPLIT: Final = 65_536
"""Batches that one request may be split into; data does not bound them, because rows may be empty."""

_BATCH_NOTE: Final = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended "
    "to each input shape. If you want to specify the full shape including the batch dim in your input dims "
    "config, try setting max_batch_size to zero. See the model configuration docs for more info on "
    "max_batch_size."
)


class Checked(NamedTuple):
    """What validation found out: the inputs by name, and the batch rows (1 for a model without batching)."""

    inputs: Mapping[str, InputTensor]
    rows: int


def splits_batches(model: Model) -> bool:
    """Whether a batch above ``max_batch_size`` is run in several parts instead of refused."""
    parameters = model.config.parameters
    # Reading a missing key of a protobuf map would add it.
    return "oversize_batch" in parameters and parameters["oversize_batch"].string_value == "split"


def full_dims(model: Model, spec: ModelTensor) -> tuple[int, ...]:
    """Return the shape that callers see: with -1 for the batch in front if the model batches."""
    return (-1, *spec.dims) if model.max_batch_size else spec.dims


def validate(model: Model, request: InferRequest, *, split: bool = False) -> Checked:
    """Check ``request`` against ``model``; with ``split`` it may have ``MAX_SPLIT`` times as many rows.

    Raises:
        InvalidTensorError: an input is missing, unexpected, or has a wrong datatype, shape or size.
        InvalidArgumentError: an output is unexpected, named twice, or cannot be ranked into classes.
    """
    specs = {spec.name: spec for spec in model.inputs}
    inputs = inputs_by_name(model, request, specs)
    check_outputs(model, request)
    prefix = request_prefix(request.id)
    rows = _batch_rows(model, request.inputs, prefix, split=split) if model.max_batch_size else 1
    for tensor in reversed(request.inputs):
        _check_tensor(model, specs[tensor.name], tensor, prefix)
    if rows < 1:
        msg = f"{prefix}inference request batch-size must be >= 1 for '{model.name}'"
        raise InvalidTensorError(msg, model=model.name)
    return Checked(inputs, rows)


def _batch_rows(model: Model, inputs: Sequence[InputTensor], prefix: str, *, split: bool) -> int:
    """Return the batch size that all inputs agree on."""
    rows: int | None = None
    for tensor in reversed(inputs):
        if not tensor.shape:
            msg = (
                f"{prefix}input '{tensor.name}' has no shape but model requires batch dimension for "
                f"'{model.name}'"
            )
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
        if rows is None:
            rows = tensor.shape[0]
        elif rows != tensor.shape[0]:
            msg = f"{prefix}input '{tensor.name}' batch size does not match other inputs for '{model.name}'"
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
    rows = 1 if rows is None else rows
    limit = model.max_batch_size * (MAX_SPLIT if split or splits_batches(model) else 1)
    if rows > limit:
        msg = f"{prefix}inference request batch-size must be <= {limit} for '{model.name}'"
        raise InvalidTensorError(msg, model=model.name, expected=str(limit), actual=str(rows))
    return rows


def _check_tensor(model: Model, spec: ModelTensor, tensor: InputTensor, prefix: str) -> None:
    """Check one input's datatype, shape and size."""
    datatype, shape, dims = tensor.datatype, tuple(tensor.shape), spec.dims
    where = f"for input '{tensor.name}' for model '{model.name}'"
    if datatype != spec.datatype:
        shown = datatype if datatype in ITEM_SIZES else "<invalid>"
        msg = (
            f"inference input '{tensor.name}' data-type is '{shown}', but model '{model.name}' expects "
            f"'{spec.datatype}'"
        )
        raise _mismatch(prefix + msg, model, spec, tensor)
    if shape and min(shape) < 0:
        msg = f"All input dimensions should be specified {where}, got {_dims(shape)}"
        raise _mismatch(prefix + msg, model, spec, tensor)
    own = shape[1:] if model.max_batch_size else shape
    if own != dims and not _fits(own, dims):
        note = _BATCH_NOTE if model.max_batch_size else ""
        expected = _dims(full_dims(model, spec))
        msg = f"unexpected shape {where}. Expected {expected}, got {_dims(shape)}. {note}"
        raise _mismatch(prefix + msg, model, spec, tensor)
    elements = prod(own)
    if model.max_batch_size:
        elements *= shape[0] or 1  # as Triton counts an empty batch
    if datatype == BYTES:
        check_elements(tensor, elements, model.name, prefix)
    elif len(tensor.data) != elements * ITEM_SIZES[datatype]:
        size = elements * ITEM_SIZES[datatype]
        msg = f"input byte size mismatch {where}. Expected {size}, got {len(tensor.data)}"
        raise _mismatch(prefix + msg, model, spec, tensor)


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(want in (-1, size) for size, want in zip(shape, dims, strict=True))


def _mismatch(message: str, model: Model, spec: ModelTensor, tensor: InputTensor) -> InvalidTensorError:
    return InvalidTensorError(
        message,
        model=model.name,
        tensor=tensor.name,
        expected=f"{spec.datatype}{_dims(full_dims(model, spec))}",
        actual=f"{tensor.datatype}{_dims(tensor.shape)}",
    )


def _dims(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
