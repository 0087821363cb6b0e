"""Tensor inference: the one path that every tensor protocol takes from a decoded request to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.runtimes.datatypes import BYTES
from headrace.server.errors import ExecutionFailedError, QueueFullError
from headrace.server.repository.model import Form, Plan
from headrace.server.scheduling.work import Part, PartInput, PartResult
from headrace.server.tasks.batching import Queueing, batcher_of, run_in_turns
from headrace.server.tasks.infer_names import request_prefix
from headrace.server.tasks.infer_split import join_rows, row_counts, split_rows
from headrace.server.tasks.infer_text import infer_text
from headrace.server.tasks.infer_validation import Checked, validate
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.tensors import InferResponse, OutputTensor
from headrace.server.tasks.top_classes import top_classes

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, ModelTensor
    from headrace.server.scheduling.runner import BatchRunner
    from headrace.server.tasks.tensors import InferRequest
    from headrace.server.tasks.tokenization import Tokenizing


MAX_PLANS: Final = 256
"""Forms of requests that are remembered for each model."""


async def infer(
    tokenizing: Tokenizing, model: Model, request: InferRequest, *, split: bool = False
) -> InferResponse:
    """Run ``request`` on ``model``.

    Args:
        tokenizing: threads for texts, and for what is too long for the event loop.
        model: the version that answers; the request's own ``model`` and ``version`` chose it.
        request: tensors as decoded, not yet checked.
        split: run more rows than the model takes at once as several batches, whatever its configuration says
            of them, and join their outputs.

    Returns:
        The named outputs in the order they were named, or all of them in the order of the configuration.

    Raises:
        InvalidTensorError: the inputs do not fit the model.
        InvalidArgumentError: the outputs do not.
        UnsupportedError: the model generates text.
        HeadraceError: whatever the batcher raises.
    """
    batcher = batcher_of(model)
    form = _form(request)
    plan = model.plans.get(form) if form is not None else None
    if plan is None:
        # Only BYTES are walked element by element; everything else is compared by size.
        walked = sum(len(tensor.data) for tensor in request.inputs if tensor.datatype == BYTES)
        checked = await call_by_size(tokenizing, walked, validate, model, request, split=split)
        plan = _plan(model, request, checked)
        # what is split only here would be refused elsewhere
        if form is not None and not (split and 0 < model.max_batch_size < plan.rows):
            _remember(model.plans, form, plan)
    specs = plan.answer
    queueing = Queueing(request.priority, request.timeout_us)
    try:
        if model.text is not None:
            result = await infer_text(tokenizing, model, request.inputs[plan.inputs[0][0]], queueing)
        else:
            result = await _run(tokenizing, batcher, model, request, plan, queueing)
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


def _form(request: InferRequest) -> Form | None:
    """Return what the checks of a request depend on; None where they depend on the values (BYTES) too."""
    inputs = [(t.name, t.datatype, tuple(t.shape), len(t.data)) for t in request.inputs]
    for entry in inputs:
        if entry[1] == BYTES:
            return None
    return (*inputs, *[(output.name, output.classification) for output in request.outputs])


def _remember(plans: dict[Form, Plan], form: Form, plan: Plan) -> None:
    """Keep the plan for the next request of this form; forms are few, so the limit only bounds abuse."""
    if len(plans) >= MAX_PLANS:
        plans.clear()
    plans[form] = plan


def _plan(model: Model, request: InferRequest, checked: Checked) -> Plan:
    """Work out, for a request that was checked, what every request of its form has in common."""
    positions = {tensor.name: index for index, tensor in enumerate(request.inputs)}
    inputs = tuple(
        (positions[spec.name], spec.model_shape(tensor.shape, batching=model.batching))
        for spec in model.inputs
        if (tensor := checked.inputs.get(spec.name)) is not None
    )
    outputs: tuple[str, ...] = ()
    answer = model.outputs
    if request.outputs:
        by_name = {spec.name: spec for spec in model.outputs}
        answer = tuple(by_name[output.name] for output in request.outputs)
        outputs = tuple(spec.name for spec in model.outputs if spec in answer)
    own = 1 if model.batching else 0
    tensors = ((request.inputs[index], shape) for index, shape in inputs)
    key = (tuple((tensor.name, tensor.datatype, shape[own:]) for tensor, shape in tensors), outputs)
    return Plan(inputs, checked.rows, key, outputs, answer)


async def _run(
    tokenizing: Tokenizing,
    batcher: BatchRunner,
    model: Model,
    request: InferRequest,
    plan: Plan,
    queueing: Queueing,
) -> PartResult:
    given = request.inputs
    inputs = [
        PartInput(given[index].name, given[index].datatype, shape, given[index].data)
        for index, shape in plan.inputs
    ]
    if model.batching and plan.rows > model.max_batch_size:
        counts = row_counts(plan.rows, model.max_batch_size)
        walked = sum(len(tensor.data) for tensor in inputs if tensor.datatype == BYTES)
        cut = await call_by_size(tokenizing, walked, split_rows, inputs, counts)
        parts = [
            Part(batch, outputs=plan.outputs, rows=rows, key=plan.key)
            for batch, rows in zip(cut, counts, strict=True)
        ]
    else:
        parts = [Part(inputs, outputs=plan.outputs, rows=plan.rows, key=plan.key)]
    results = await run_in_turns(batcher, parts, queueing)
    return results[0] if len(results) == 1 else join_rows(results)


def _output(model: Model, spec: ModelTensor, result: PartResult) -> OutputTensor:
    """Take one output out of the result."""
    found = result.get(spec.name)
    if found is None:
        msg = f"model '{model.name}' did not produce output '{spec.name}'"
        raise ExecutionFailedError(msg, model=model.name, tensor=spec.name)
    shape = spec.caller_shape(found.shape, batching=model.batching)
    return OutputTensor(spec.name, found.datatype, shape, found.data)
