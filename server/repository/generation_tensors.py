"""The tensors of a model that generates text, as callers of the KServe API see them.

Names, types and shapes are those of Triton's LLM backends (vLLM's, and TensorRT-LLM's in its one-model form),
and ``stop`` and ``details`` those of the Open Inference Protocol's generate schema, so that requests written
for one of them fit. Only ``text_input`` must be given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import TensorSpec
from headrace.runtimes.datatypes import BYTES
from headrace.server.repository.signature import fill_tensor

INPUT: Final = "text_input"
OUTPUT: Final = "text_output"


def _specs(datatype: str, shape: tuple[int, ...], *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype, shape) for name in names)


INPUTS: Final = (
    *_specs(BYTES, (1,), INPUT),
    *_specs("BOOL", (1,), "stream"),
    *_specs(BYTES, (1,), "sampling_parameters"),
    *_specs(
        "BOOL",
        (1,),
        "exclude_input_in_output",
        "return_finish_reason",
        "return_cumulative_logprob",
        "return_logprobs",
        "return_num_input_tokens",
        "return_num_output_tokens",
    ),
    *_specs("INT32", (1,), "max_tokens", "min_tokens", "min_length"),
    *_specs(BYTES, (-1,), "stop", "stop_words", "bad_words"),
    *_specs("INT32", (1,), "end_id", "pad_id", "top_k", "beam_width"),
    *_specs(
        "FP32",
        (1,),
        "top_p",
        "temperature",
        "length_penalty",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ),
    *_specs("UINT64", (1,), "seed", "random_seed"),
    *_specs("BOOL", (1,), "return_log_probs", "return_context_logits", "return_generation_logits", "details"),
)
OUTPUTS: Final = (
    *_specs(BYTES, (-1,), OUTPUT, "finish_reason"),
    *_specs("FP32", (-1,), "cumulative_logprob"),
    *_specs(BYTES, (-1,), "logprobs"),
    *_specs("UINT32", (1,), "num_input_tokens"),
    *_specs("UINT32", (-1,), "num_output_tokens"),
    *_specs("FP32", (-1,), "cum_log_probs"),
    *_specs("FP32", (-1, -1), "output_log_probs"),
    *_specs(BYTES, (-1,), "details"),
)


def named(specs: Iterable[TensorSpec], required: str, names: Iterable[str]) -> tuple[TensorSpec, ...]:
    """Return the tensor that every such model has, and those others that a configuration names."""
    wanted = {required, *names}
    return tuple(spec for spec in specs if spec.name in wanted)


def add_optional(config: ModelConfig) -> None:
    """Write into the configuration what the user did not: other inputs, as optional ones, and outputs."""
    known = {tensor.name for tensor in config.input}
    for spec in INPUTS:
        if spec.name not in known:
            tensor = config.input.add(optional=True)
            fill_tensor(tensor, spec, batching=False)
    known = {tensor.name for tensor in config.output}
    for spec in OUTPUTS:
        if spec.name not in known:
            fill_tensor(config.output.add(), spec, batching=False)
