"""What a body asks for on the paths that mean what the model does: ``POST /``, ``/invocations``, ``/vertex``.

Such a body says neither a family nor a task: the clients of Hugging Face send the same keys for all of them.
So its shape is read first, and then the kind of the model. Source of the shapes: huggingface_hub's methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from headrace.server.codecs.json_body import given, parse
from headrace.server.codecs.vllm_scores import PAIR_FIELDS
from headrace.server.errors import InvalidArgumentError, InvalidJsonError
from headrace.server.repository.model import Task


class Shape(StrEnum):
    """What a body looks like."""

    RANKING = "ranking"  # a query with texts
    SIMILARITY = "sentence similarity"
    GENERATION = "generation"  # has options that only generation has
    LABELS = "labels"  # … only classification
    VECTORS = "vectors"  # … only embeddings
    TEXTS = "a list of texts"  # or a text with options that all encoders have and generation has not
    TEXT = "a text"
    OTHER = "other"  # numbers, objects, or nothing


class Invocation(StrEnum):
    """Whose route a body of ``/invocations`` is meant for."""

    RUN = "run"  # what the model does
    CHAT = "chat"
    COMPLETION = "completion"
    INPUT = "input"  # vLLM's vectors or classes, as the model does
    RANKING = "ranking"  # vLLM's: a query with documents
    SCORES = "scores"  # vLLM's


TEXT_TASKS: Final = (Task.GENERATE, Task.EMBED, Task.CLASSIFY, Task.RERANK)
ALL_TASKS: Final = (*TEXT_TASKS, Task.PREDICT, Task.TENSORS)
TASKS: Final[Mapping[Shape, tuple[Task, ...]]] = MappingProxyType(
    {
        Shape.RANKING: (Task.RERANK, Task.EMBED, Task.CLASSIFY),
        Shape.SIMILARITY: (Task.EMBED, Task.CLASSIFY, Task.RERANK),
        Shape.GENERATION: (Task.GENERATE,),
        Shape.LABELS: (Task.CLASSIFY, Task.RERANK, Task.EMBED),
        Shape.VECTORS: (Task.EMBED, Task.CLASSIFY, Task.RERANK),
        Shape.TEXTS: (Task.EMBED, Task.CLASSIFY, Task.RERANK),
        Shape.TEXT: TEXT_TASKS,
        Shape.OTHER: ALL_TASKS,
    }
)
"""Shape → the tasks whose default model answers where no model is named, in order.

A server whose encoders are all of another kind answers as they do where they are named.
"""

_GENERATION: Final = frozenset(
    {
        "adapter_id",
        "best_of",
        "decoder_input_details",
        "details",
        "do_sample",
        "frequency_penalty",
        "grammar",
        "max_new_tokens",
        "repetition_penalty",
        "return_full_text",
        "seed",
        "stop",
        "temperature",
        "top_n_tokens",
        "top_p",
        "typical_p",
        "watermark",
    }
)
_LABELS: Final = frozenset({"function_to_apply", "raw_scores"})
_VECTORS: Final = frozenset({"dimensions", "encoding_format", "normalize", "prompt_name"})
_ENCODERS: Final = frozenset({"truncate", "truncation_direction"})
"""Options of encoders, where they stand beside ``inputs``; ``parameters.truncate`` is a generator's."""

_MEDIA: Final = frozenset({"audio", "image", "video"})
_BINARY: Final = "application/octet-stream"
_JSON: Final = frozenset({b"{", b"[", b""})
"""How a body that is meant as JSON begins."""


def body_object(content_type: str, data: bytes) -> dict[str, Any]:
    """Parse a body; any content type that may hold text is taken for JSON, for ``curl -d`` sends a form's.

    Raises:
        InvalidArgumentError: it is audio, an image or a video, by its type or its first byte.
        InvalidJsonError: it is not a JSON object.
    """
    kind = content_type.partition(";")[0].strip().lower()
    unnamed = kind in {"", _BINARY} and data.lstrip()[:1] not in _JSON
    if unnamed or kind.partition("/")[0] in _MEDIA:
        raise InvalidArgumentError(
            "no model here takes audio, images or other binary bodies: send a JSON object with `inputs`"
        )
    value = parse(data)
    if not isinstance(value, dict):
        raise InvalidJsonError("the body is JSON but not an object: send an object with `inputs`")
    return value


def shape(value: Mapping[str, Any]) -> Shape:
    """Tell what a body looks like; see :class:`Shape`. A null is no value."""
    inputs = value.get("inputs")
    keys = given(embed_value(value))
    signs = (
        (keys >= {"query", "texts"}, Shape.RANKING),
        (isinstance(inputs, dict) and "source_sentence" in inputs, Shape.SIMILARITY),
        (isinstance(inputs, dict), Shape.OTHER),
        (keys & _LABELS, Shape.LABELS),
        (keys & _VECTORS, Shape.VECTORS),
        (given(value) & _ENCODERS, Shape.TEXTS),
        (keys & _GENERATION or value.get("stream"), Shape.GENERATION),
        (isinstance(inputs, str), Shape.TEXT),
        (isinstance(inputs, list), Shape.TEXTS),
    )
    return next((found for sign, found in signs if sign), Shape.OTHER)


def invocation(value: Mapping[str, Any]) -> Invocation:
    """Tell which route a body of ``/invocations`` is meant for, by its members; a null is no value."""
    members = given(value)
    if "inputs" in members:
        return Invocation.RUN
    signs = (
        ("messages" in members, Invocation.CHAT),
        ("prompt" in members, Invocation.COMPLETION),
        ("input" in members, Invocation.INPUT),
        (members >= {"query", "documents"} and "texts" not in members, Invocation.RANKING),
        (any(members.issuperset(pair) for pair in PAIR_FIELDS), Invocation.SCORES),
    )
    return next((found for sign, found in signs if sign), Invocation.RUN)


def embed_value(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body with the options of ``parameters`` at its root, where ``/embed`` has them.

    What the root has already stays.
    """
    parameters = value.get("parameters")
    options = parameters if isinstance(parameters, dict) else {}
    return options | {key: entry for key, entry in value.items() if key != "parameters"}


def is_pipeline(value: Mapping[str, Any]) -> bool:
    """Whether a classification body has the form of Hugging Face's pipelines: options under ``parameters``.

    A list of its texts is then a batch, not a pair, and the answer has a list for every text, also for one.
    """
    return isinstance(value.get("parameters"), dict)


def label_value(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a classification body as ``/predict`` takes it."""
    found = embed_value(value)
    if is_pipeline(value):
        inputs = found.get("inputs")
        batch = [inputs] if isinstance(inputs, str) else inputs
        if isinstance(batch, list):
            found["inputs"] = [[entry] if isinstance(entry, str) else entry for entry in batch]
    return found
