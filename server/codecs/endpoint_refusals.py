"""Requests for tasks that no model here has, told by the shape of the body, and what to send instead.

Source of the shapes: the methods of huggingface_hub's client, whose bodies all go to the same path.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.model import Task

if TYPE_CHECKING:
    from headrace.server.repository.model import Model

_BY_PARAMETER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "candidate_labels": "zero-shot classification",
        "hypothesis_template": "zero-shot classification",
        "aggregation_strategy": "token classification",
        "ignore_labels": "token classification",
        "targets": "filling masks",
        "src_lang": "translation",
        "tgt_lang": "translation",
        "generate_parameters": "summarization or translation",
        "clean_up_tokenization_spaces": "summarization or translation",
        "max_answer_len": "question answering",
        "handle_impossible_answer": "question answering",
        "return_timestamps": "speech recognition",
        "generation_parameters": "speech recognition",
        "num_inference_steps": "image generation",
        "guidance_scale": "image generation",
    }
)
_BY_INPUTS: Final = (
    (frozenset({"question", "context"}), "question answering"),
    (frozenset({"table", "query"}), "table question answering"),
    (frozenset({"image", "question"}), "visual question answering"),
    (frozenset({"past_user_inputs"}), "the conversational task"),
    (frozenset({"generated_responses"}), "the conversational task"),
)
_ELSE: Final = " Anything else: ask a model that generates text, at /v1/chat/completions."
_USES: Final[Mapping[Task, str]] = MappingProxyType(
    {
        Task.GENERATE: 'generates text: send {"inputs": "…", "parameters": {…}}, or tell it what to do with '
        '{"messages": […]} at /v1/chat/completions.',
        Task.EMBED: 'embeds text: send {"inputs": "…"} for vectors, {"inputs": {"source_sentence": "…", '
        '"sentences": ["…"]}} for similarities, {"query": "…", "texts": ["…"]} for a ranking.' + _ELSE,
        Task.CLASSIFY: 'classifies text: send {"inputs": "…"} for labels with scores.' + _ELSE,
        Task.RERANK: 'ranks texts: send {"query": "…", "texts": ["…"]}.' + _ELSE,
        Task.PREDICT: "predicts from numbers: use /v1/predict or /v2/models.",
        Task.TENSORS: "takes tensors: use /v1/predict or /v2/models.",
    }
)


def check_served(value: Mapping[str, Any], model: Model) -> None:
    """Refuse a body of a task that no model here has.

    Raises:
        InvalidArgumentError: the text names the task, what ``model`` does and what to send.
    """
    inputs, parameters = value.get("inputs"), value.get("parameters")
    task = None
    if isinstance(parameters, dict):
        task = next((name for key, name in _BY_PARAMETER.items() if parameters.get(key) is not None), None)
    if task is None and isinstance(inputs, dict):
        task = next((name for keys, name in _BY_INPUTS if keys <= set(inputs)), None)
        if task is None and "source_sentence" not in inputs:
            task = "a request with such an object as `inputs`"
    if task is not None:
        raise refusal(task[0].upper() + task[1:], model)


def refusal(task: str, model: Model) -> InvalidArgumentError:
    """Return the error of a request for ``task``, which ``model`` does not have."""
    return InvalidArgumentError(
        f"{task} is not what model '{model.name}' does. It {_USES[model.task]}", field="inputs"
    )
