"""``/vertex``: instances in, predictions out, as Vertex AI calls a container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.server.codecs.json_body import parse
from headrace.server.errors import InvalidJsonError


def instance_values(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the instances; ``model`` beside them counts for each that names none.

    Raises:
        InvalidJsonError: ``instances`` is not a list of objects.
    """
    instances = value.get("instances")
    if not isinstance(instances, list):
        problem = "is missing" if instances is None else "is not a list"
        raise InvalidJsonError(f"`instances` {problem}: send {{'instances': […]}}", field="instances")
    model = {} if value.get("model") is None else {"model": value["model"]}
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise InvalidJsonError(f"`instances[{index}]` is not an object", field=f"instances[{index}]")
    return [model | instance for instance in instances]


def predictions_json(predictions: Sequence[bytes]) -> bytes:
    """Encode the answer around ``predictions``, each JSON already."""
    return b'{"predictions":[' + b",".join(predictions) + b"]}"


def text_of_chat(body: bytes) -> str:
    """Return the text of a chat completion, "" where the model wrote none."""
    return parse(body)["choices"][0]["message"].get("content") or ""
