"""Tensors and parameters of a request to a model that generates → what the generate task takes.

Sources: the inputs of Triton's vLLM backend, whose ``sampling_parameters`` are a JSON text of vLLM's sampling
fields, and those of its TensorRT-LLM backend; ``stop`` and ``details`` of the Open Inference Protocol. Where
several give a value, an input wins over ``sampling_parameters`` and these over the request's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from headrace.runtimes.datatypes import BYTES, to_array
from headrace.server.codecs.families import FAMILIES
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_options import options
from headrace.server.codecs.openai_sampling import SamplingBody, Wanted
from headrace.server.codecs.openai_structured import StructureBody, grammar
from headrace.server.errors import InvalidArgumentError, InvalidJsonError, UnsupportedError
from headrace.server.tasks.generate import generation_settings
from headrace.server.tasks.generation_outputs import SCORES
from headrace.server.tasks.infer_generate import TextRequest
from headrace.server.tasks.infer_text import element_texts
from headrace.server.tasks.infer_validation import validate

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.tensors import InferRequest, InputTensor

_RENAMED: Final[Mapping[str, str]] = MappingProxyType({"min_length": "min_tokens", "random_seed": "seed"})
"""TensorRT-LLM's names of vLLM's fields."""

_NUMBERS: Final = (
    "max_tokens", "min_tokens", "min_length", "top_k", "top_p", "temperature", "length_penalty",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "random_seed",
)  # fmt: skip
_FLAGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "return_finish_reason": ("finish_reason",),
        "return_cumulative_logprob": ("cumulative_logprob",),
        "return_logprobs": ("logprobs",),
        "return_num_input_tokens": ("num_input_tokens",),
        "return_num_output_tokens": ("num_output_tokens",),
        "return_log_probs": ("cum_log_probs", "output_log_probs"),
        "details": ("details",),
    }
)
"""Inputs that ask for outputs."""


class _Limits(msgspec.Struct):
    """Fields that are no part of :class:`SamplingBody`, for its families read them elsewhere."""

    max_tokens: int | None = None
    logprobs: int | None = None
    best_of: int | None = None
    lora_name: str | None = None


def text_request(model: Model, request: InferRequest, *, stream: bool = False) -> TextRequest:
    """Read a request to ``model``, which generates text.

    Args:
        model: a model that generates.
        request: not yet checked.
        stream: whether the text comes in pieces where the request does not say.

    Raises:
        InvalidTensorError: an input is missing, unexpected, of a wrong datatype, shape or size, or no text.
        InvalidJsonError: ``sampling_parameters`` is not a JSON object, or a field has the wrong type.
        InvalidArgumentError: a wrong value, two constraints on the text, or the prompt wanted in a stream.
        UnsupportedError: an output that is not offered.
    """
    inputs = _values(model, request)
    given = _flag("stream", inputs, request)
    stream = stream if given is None else given
    excluded = _flag("exclude_input_in_output", inputs, request)
    if stream and excluded is False:
        raise InvalidArgumentError(
            "When streaming, `exclude_input_in_output` = False is not allowed.",
            field="exclude_input_in_output",
        )
    for name in ("return_context_logits", "return_generation_logits"):
        if _flag(name, inputs, request):
            raise UnsupportedError(f"`{name}` is not offered by this server", field=name)
    if any(output.classification for output in request.outputs):
        raise UnsupportedError(
            "the outputs of a model that generates have no classes", field="classification"
        )
    extras = tuple(name for flag, names in _FLAGS.items() if _flag(flag, inputs, request) for name in names)
    fields = _fields(inputs, request)
    body = convert(fields, SamplingBody, strict=False)
    limits = convert(fields, _Limits, strict=False)
    scored = not SCORES.isdisjoint(extras)
    most = limits.max_tokens
    if most is None and (default := FAMILIES["triton"].default("max_tokens")) is not None:
        most = int(default)
    wanted = Wanted(
        max_tokens=most,
        logprobs=0 if scored and limits.logprobs is None else limits.logprobs,
        grammar=grammar(convert(fields, StructureBody, strict=False)),
        best_of=limits.best_of,
    )
    chosen = options(body, wanted, generation_settings(model), request.id)
    if limits.lora_name:
        sampling = msgspec.structs.replace(chosen.sampling, adapter=limits.lora_name)
        chosen = replace(chosen, sampling=sampling)
    return TextRequest(
        request.id,
        inputs["text_input"],
        chosen,
        bad_words=tuple(body.bad_words or ()),
        stream=stream,
        echo=excluded is False,
        extras=extras,
        ranked=limits.logprobs is not None,
        names=frozenset(output.name for output in request.outputs),
        timeout=request.timeout_us / 1e6 if request.timeout_us else None,
    )


def _values(model: Model, request: InferRequest) -> dict[str, Any]:
    """Return the inputs by name: a value, or a list of texts where any number may be given."""
    ranks = {spec.name: len(spec.dims) for spec in model.inputs}
    for tensor in request.inputs:
        # Clients of TensorRT-LLM's backend put a batch of one in front of every shape.
        if len(tensor.shape) == ranks.get(tensor.name, 0) + 1 and tensor.shape[0] == 1:
            tensor.shape = tensor.shape[1:]
    validate(model, request)
    lists = {spec.name for spec in model.inputs if spec.dims == (-1,)}
    found: dict[str, Any] = {}
    for tensor in request.inputs:
        values = _elements(model, tensor)
        found[tensor.name] = values if tensor.name in lists else values[0]
    return found


def _elements(model: Model, tensor: InputTensor) -> list[Any]:
    if tensor.datatype == BYTES:
        return element_texts(model, tensor)
    array = to_array(tensor.datatype, (-1,), tensor.data)
    if tensor.datatype == "FP32":  # the shortest decimal is the number that was meant: 0.7 stays 0.7
        return [float(str(value)) for value in array]
    values: list[Any] = array.tolist()
    return values


def _flag(name: str, inputs: Mapping[str, Any], request: InferRequest) -> bool | None:
    """Return a flag that is an input or, where a client has it there, a parameter; None if not given."""
    value = inputs.get(name, request.parameters.get(name))
    if value is not None and not isinstance(value, bool):
        raise InvalidArgumentError(f"`{name}` is {value!r}, expected a boolean", field=name)
    return value


def _fields(inputs: Mapping[str, Any], request: InferRequest) -> dict[str, Any]:
    """Return vLLM's sampling fields."""
    fields: dict[str, Any] = dict(request.parameters)
    given = inputs.get("sampling_parameters")
    if given:
        fields |= _object(given)
    if request.priority:
        fields["priority"] = request.priority
    for name in _NUMBERS:
        if name in inputs:
            fields[_RENAMED.get(name, name)] = inputs[name]
    if fields.get("top_p") == 0 and fields.get("top_k"):
        del fields["top_p"]  # what TensorRT-LLM's clients send for "by `top_k` alone"
    # Clients send one empty text where they have none.
    stops = [text for name in ("stop", "stop_words") for text in inputs.get(name, ()) if text]
    if stops:
        fields["stop"] = [*_list(fields.get("stop")), *stops]
    words = [text for text in inputs.get("bad_words", ()) if text]
    if words:
        fields["bad_words"] = [*_list(fields.get("bad_words")), *words]
    end = inputs.get("end_id", -1)
    if end >= 0:
        fields["stop_token_ids"] = [*_list(fields.get("stop_token_ids")), end]
    if inputs.get("beam_width", 1) != 1:
        fields |= {"use_beam_search": True, "n": inputs["beam_width"]}
    return fields


def _object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        msg = f"`sampling_parameters` is not valid JSON: {error.msg} at character {error.pos}"
        raise InvalidJsonError(msg, field="sampling_parameters") from None
    if not isinstance(value, dict):
        raise InvalidJsonError("`sampling_parameters` is not a JSON object", field="sampling_parameters")
    return value


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
