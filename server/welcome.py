"""What ``headrace serve`` prints when it is ready: the addresses and three commands to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.repository.model import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.config import Settings
    from headrace.server.repository.model import Model

_EXAMPLES = (
    (Task.EMBED, "embed", """'{"inputs": "What is Deep Learning?"}'"""),
    (Task.CLASSIFY, "classify", """'{"inputs": "this is good!"}'"""),
    (Task.PREDICT, "predict", None),
)


def welcome(settings: Settings, models: Sequence[Model], grpc_port: int, http_port: int) -> str:
    """Return the text: addresses, then curl lines for models that are really there."""
    lines = ["", f"  gRPC  {settings.grpc_host}:{grpc_port}"]
    if not settings.envoy:
        return "\n".join(lines) + "\n"
    base = f"http://{settings.http_host}:{http_port}"
    lines += [f"  REST  {base}", "", "  try:", f"    curl {base}/v2/models"]
    for task, path, body in _EXAMPLES:
        model = _example(models, task)
        if model is not None and len(lines) < 8:
            data = body if body is not None else _zeros(model)
            lines.append(
                f"    curl {base}/models/{model.name}/proxy/v1/{path}"
                f" -H 'Content-Type: application/json' -d {data}"
            )
    return "\n".join(lines) + "\n"


def _example(models: Sequence[Model], task: Task) -> Model | None:
    """Choose a model of ``task`` that takes what the commands send (text models for texts)."""
    fitting = [
        model
        for model in models
        if model.task is task and (model.text is not None) == (task is not Task.PREDICT)
    ]
    return max(fitting, key=lambda model: model.default, default=None)


def _zeros(model: Model) -> str:
    width = max(1, model.inputs[0].dims[-1] if model.inputs and model.inputs[0].dims else 1)
    return "'[" + ", ".join(["0"] * width) + "]'"
