"""Whether a request names the inputs and outputs that the model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from headrace.server.errors import InvalidArgumentError, InvalidTensorError
from headrace.server.tasks.top_classes import check_datatype

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.tasks.tensors import InferRequest, InputTensor


def request_prefix(request_id: str) -> str:
    """Return the text that Triton puts before an error of one request."""
    return f"[request id: {request_id or '<id_unknown>'}] "


def inputs_by_name(
    model: Model, request: InferRequest, specs: Mapping[str, ModelTensor]
) -> Mapping[str, InputTensor]:
    """Return the request's inputs by name, after checking that they are the ones in ``specs``.

    Raises:
        InvalidTensorError: a name is given twice, missing or unexpected.
    """
    inputs: dict[str, InputTensor] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            msg = f"{request_prefix(request.id)}input '{tensor.name}' already exists in request"
            raise InvalidTensorError(msg, model=model.name, tensor=tensor.name)
        inputs[tensor.name] = tensor
    if inputs.keys() != specs.keys():
        _check_difference(model, request, inputs, specs)
    return inputs


def _check_difference(
    model: Model,
    request: InferRequest,
    inputs: Mapping[str, InputTensor],
    specs: Mapping[str, ModelTensor],
) -> None:
    """Allow that optional inputs are left out, and name everything else that is missing or unexpected."""
    required = [name for name, spec in specs.items() if not spec.optional]
    missing = [name for name in required if name not in inputs]
    unexpected = [name for name in inputs if name not in specs]
    if not missing and not unexpected:
        return
    if unexpected and len(required) <= len(inputs) <= len(specs):
        msg = f"unexpected inference input '{unexpected[0]}' for model '{model.name}'"
        raise InvalidTensorError(msg, model=model.name, tensor=unexpected[0])
    expected = (
        f"expected {len(specs)} inputs"
        if len(required) == len(specs)
        else f"expected number of inputs between {len(required)} and {len(specs)}"
    )
    wrong = [f"missing required input(s) {_names(missing)}"] if missing else []
    wrong += [f"unexpected input(s) {_names(unexpected)}"] if unexpected else []
    msg = (
        f"{request_prefix(request.id)}{expected} but got {len(inputs)} inputs for model '{model.name}'. Got "
        f"input(s) {_names(inputs)}, but {' and '.join(wrong)}. Please provide all required input(s)."
    )
    raise InvalidTensorError(msg, model=model.name, tensor=(missing or unexpected)[0])


def check_outputs(model: Model, request: InferRequest) -> None:
    """Check the outputs that the request names.

    Raises:
        InvalidArgumentError: a name is unexpected or given twice, or an output cannot be ranked into classes.
    """
    seen: set[str] = set()
    for output in request.outputs:
        spec = next((spec for spec in model.outputs if spec.name == output.name), None)
        if spec is None:
            msg = f"unexpected inference output '{output.name}' for model '{model.name}'"
            raise InvalidArgumentError(msg, field="outputs", value=output.name)
        if output.name in seen:
            msg = f"{request_prefix(request.id)}output '{output.name}' already exists in request"
            raise InvalidArgumentError(msg, field="outputs", value=output.name)
        seen.add(output.name)
        if output.classification:
            check_datatype(spec.datatype)


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
