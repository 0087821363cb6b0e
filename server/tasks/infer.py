"""Tensor inference: the one path that every tensor protocol takes from a decoded request to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.runtimes.datatypes import BYTES
from headrace.server.errors import ExecutionFailedError, QueueFullError
from headrace.server.scheduling.work import Part, PartInput, PartResult
from headrace.server.tasks.infer_names import request_prefix
from headrace.server.tasks.infer_split import join_rows, row_counts, split_rows
from headrace.server.tasks.infer_text import infer_text
from headrace.server.tasks.infer_validation import Checked, validate
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.tensors import InferResponse, OutputTensor
from headrace.server.tasks.top_classes import top_classes

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.tasks.tensors import InferRequest
    from headrace.server.tasks.tokenization import Tokenizing


async def infer(tokenizing: Tokenizing, model: Model, request: InferRequest) -> InferResponse:
    """Run ``request`` on ``model``.

    Args:
        tokenizing: threads for texts, and for what is too long for the event loop.
        model: the version that answers; the request's own ``model`` and ``version`` chose it.
        request: tensors as decoded, not yet checked.

    Returns:
        The named outputs in the order they were named, or all of them in the order of the configuration.

    Raises:
        InvalidTensorError: the inputs do not fit the model.
        InvalidArgumentError: the outputs do not.
        HeadraceError: whatever the batcher raises.
    """
    # Only BYTES are walked element by element; everything else is compared by size.
    walked = sum(len(tensor.data) for tensor in request.inputs if tensor.datatype == BYTES)
    checked = await call_by_size(tokenizing, walked, validate, model, request)
    specs = _requested(model, request)
    try:
        result = await _run(tokenizing, model, request, checked)
    except QueueFullError as error:
        raise QueueFullError(request_prefix(request.id) + error.message, **error.metadata) from error
    outputs = [_output(model, spec, result) for spec in specs]
    for index, wanted in enumerate(request.outputs):
        if wanted.classification:
            output = outputs[index]
            outputs[index] = await call_by_size(
                tokenizing,
                len(output.data),
                top_classes,
                output,
                wanted.classification,
                specs[index].labels,
                batching=model.batching,
            )
    return InferResponse(model.name, str(model.version), request.id, outputs)


def _requested(model: Model, request: InferRequest) -> Sequence[ModelTensor]:
    """Return the outputs to answer with, in the order of the answer."""
    if not request.outputs:
        return model.outputs
    by_name = {spec.name: spec for spec in model.outputs}
    return [by_name[output.name] for output in request.outputs]


async def _run(tokenizing: Tokenizing, model: Model, request: InferRequest, checked: Checked) -> PartResult:
    if model.text is not None:
        return await infer_text(tokenizing, model, checked.inputs[model.inputs[0].name])
    inputs = [
        PartInput(
            tensor.name,
            tensor.datatype,
            spec.model_shape(tensor.shape, batching=model.batching),
            tensor.data,
        )
        for spec in model.inputs
        if (tensor := checked.inputs.get(spec.name)) is not None
    ]
    outputs: tuple[str, ...] = ()
    if request.outputs:
        names = {output.name for output in request.outputs}
        outputs = tuple(spec.name for spec in model.outputs if spec.name in names)
    counts = [checked.rows]
    batches = [inputs]
    if model.batching and checked.rows > model.max_batch_size:
        counts = row_counts(checked.rows, model.max_batch_size)
        batches = split_rows(inputs, counts)
    own = 1 if model.batching else 0
    key = (tuple((name, datatype, shape[own:]) for name, datatype, shape, _ in inputs), outputs)
    parts = [
        Part(batch, outputs=outputs, rows=rows, key=key) for batch, rows in zip(batches, counts, strict=True)
    ]
    results = await model.batcher.run(parts, priority=request.priority, timeout_us=request.timeout_us)
    return results[0] if len(results) == 1 else join_rows(results)


def _output(model: Model, spec: ModelTensor, result: PartResult) -> OutputTensor:
    """Take one output out of the result."""
    found = result.get(spec.name)
    if found is None:
        msg = f"model '{model.name}' did not produce output '{spec.name}'"
        raise ExecutionFailedError(msg, model=model.name, tensor=spec.name)
    shape = spec.caller_shape(found.shape, batching=model.batching)
    return OutputTensor(spec.name, found.datatype, shape, found.data)
