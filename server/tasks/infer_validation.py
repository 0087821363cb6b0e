"""Whether a tensor request fits its model: names, batch, datatypes, shapes, sizes.

The checks, their order and their texts are those of Triton's inference request normalisation, so that clients
which match on them keep working. Inputs are looked at from the last to the first, as Triton reports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.runtimes.datatypes import BYTES, ITEM_SIZES
from headrace.server.errors import InvalidArgumentError, InvalidTensorError
from headrace.server.tasks.infer_bytes import check_elements
from headrace.server.tasks.top_classes import check_datatype

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.tasks.tensors import InferRequest, InputTensor

_BATCH_NOTE: Final = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to "
    "each input shape. If you want to specify the full shape including the batch dim in your input dims config, "
    "try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


class Checked(NamedTuple):
    """What validation found out: the inputs by name, and the batch rows (1 for a model without batching)."""

    inputs: Mapping[str, InputTensor]
    rows: int


def request_prefix(request_id: str) -> str:
    """Return the text that Triton puts before an error of one request."""
    return f"[request id: {request_id or '<id_unknown>'}] "


def splits_batches(model: Model) -> bool:
    """Whether a batch above ``max_batch_size`` is run in several parts instead of refused."""
    parameters = model.config.parameters
    # Reading a missing key of a protobuf map would add it.
    return "oversize_batch" in parameters and parameters["oversize_batch"].string_value == "split"


def validate(model: Model, request: InferRequest) -> Checked:
    """Check ``request`` against ``model``.

    Raises:
        InvalidTensorError: an input is missing, unexpected, or has a wrong datatype, shape or size.
        InvalidArgumentError: an output is unexpected, named twice, or cannot be ranked into classes.
    """
    prefix = request_prefix(request.id)
    inputs = _check_inputs(model, request, prefix)
    _check_outputs(model, request, prefix)
    rows = _check_batch(model, request.inputs, prefix) if model.max_batch_size else 1
    specs = {spec.name: spec for spec in model.inputs}
    for tensor in reversed(request.inputs):
        _check_tensor(model, specs[tensor.name], tensor, prefix)
    if rows < 1:
        msg = f"{prefix}inference request batch-size must be >= 1 for '{model.name}'"
        raise InvalidTensorError(msg, model=model.name)
    return Checked(inputs, rows)


def _check_inputs(model: Model, request: InferRequest, prefix: str) -> Mapping[str, InputTensor]:
    """Check names and number of the inputs; return them by name."""
    inputs: dict[str, InputTensor] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            msg = f"{prefix}input '{tensor.name}' already exists in request"
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
        inputs[tensor.name] = tensor
    known = {spec.name for spec in model.inputs}
    missing = [spec.name for spec in model.inputs if not spec.optional and spec.name not in inputs]
    unexpected = [name for name in inputs if name not in known]
    if not missing and not unexpected:
        return inputs
    least = sum(not spec.optional for spec in model.inputs)
    most = len(model.inputs)
    if unexpected and least <= len(inputs) <= most:
        msg = f"unexpected inference input '{unexpected[0]}' for model '{model.name}'"
        raise InvalidTensorError(msg, model=model.name, tensor=unexpected[0])
    expected = f"expected {most} inputs" if least == most else f"expected number of inputs between {least} and {most}"
    wrong = [f"missing required input(s) {_names(missing)}"] if missing else []
    wrong += [f"unexpected input(s) {_names(unexpected)}"] if unexpected else []
    msg = (
        f"{prefix}{expected} but got {len(inputs)} inputs for model '{model.name}'. Got input(s) "
        f"{_names(inputs)}, but {' and '.join(wrong)}. Please provide all required input(s)."
    )
    raise InvalidTensorError(msg, model=model.name, tensor=(missing or unexpected)[0])


def _check_outputs(model: Model, request: InferRequest, prefix: str) -> None:
    """Check the outputs that the request names."""
    seen: set[str] = set()
    for output in request.outputs:
        spec = next((spec for spec in model.outputs if spec.name == output.name), None)
        if spec is None:
            msg = f"unexpected inference output '{output.name}' for model '{model.name}'"
            raise InvalidArgumentError(msg, field="outputs", value=output.name)
        if output.name in seen:
            msg = f"{prefix}output '{output.name}' already exists in request"
            raise InvalidArgumentError(msg, field="outputs", value=output.name)
        seen.add(output.name)
        if output.classification:
            check_datatype(spec.datatype)


def _check_batch(model: Model, inputs: Sequence[InputTensor], prefix: str) -> int:
    """Return the batch size that all inputs agree on."""
    rows: int | None = None
    for tensor in reversed(inputs):
        if not tensor.shape:
            msg = (
                f"{prefix}input '{tensor.name}' has no shape but model requires batch dimension for '{model.name}'"
            )
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
        if rows is None:
            rows = tensor.shape[0]
        elif rows != tensor.shape[0]:
            msg = f"{prefix}input '{tensor.name}' batch size does not match other inputs for '{model.name}'"
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
    rows = 1 if rows is None else rows
    if rows > model.max_batch_size and not splits_batches(model):
        msg = f"{prefix}inference request batch-size must be <= {model.max_batch_size} for '{model.name}'"
        raise InvalidTensorError(msg, model=model.name, actual=str(rows), expected=str(model.max_batch_size))
    return rows


def _check_tensor(model: Model, spec: ModelTensor, tensor: InputTensor, prefix: str) -> None:
    """Check one input's datatype, shape and size."""
    datatype, shape, dims = tensor.datatype, tensor.shape, spec.dims
    if datatype != spec.datatype:
        shown = datatype if datatype in ITEM_SIZES else "<invalid>"
        msg = (
            f"{prefix}inference input '{tensor.name}' data-type is '{shown}', but model '{model.name}' expects "
            f"'{spec.datatype}'"
        )
        raise _mismatch(msg, model, spec, tensor)
    own = shape[1:] if model.max_batch_size else shape
    if any(size < 0 for size in shape):
        msg = (
            f"{prefix}All input dimensions should be specified for input '{tensor.name}' for model "
            f"'{model.name}', got {_dims(shape)}"
        )
        raise _mismatch(msg, model, spec, tensor)
    if len(own) != len(dims) or any(want not in (-1, size) for want, size in zip(dims, own, strict=True)):
        msg = (
            f"{prefix}unexpected shape for input '{tensor.name}' for model '{model.name}'. Expected "
            f"{_dims(full_dims(model, spec))}, got {_dims(shape)}. {_BATCH_NOTE if model.max_batch_size else ''}"
        )
        raise _mismatch(msg, model, spec, tensor)
    elements = prod(own)
    if model.max_batch_size:
        elements *= max(shape[0], 1)  # as Triton counts an empty batch
    if datatype == BYTES:
        check_elements(tensor, elements, model.name, prefix)
    elif len(tensor.data) != elements * ITEM_SIZES[datatype]:
        msg = (
            f"{prefix}input byte size mismatch for input '{tensor.name}' for model '{model.name}'. Expected "
            f"{elements * ITEM_SIZES[datatype]}, got {len(tensor.data)}"
        )
        raise _mismatch(msg, model, spec, tensor)


def full_dims(model: Model, spec: ModelTensor) -> tuple[int, ...]:
    """Return the shape that callers see: with -1 for the batch in front if the model batches."""
    return (-1, *spec.dims) if model.max_batch_size else spec.dims


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


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
