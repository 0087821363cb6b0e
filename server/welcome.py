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
    tls = settings.tls_certificate is not None
    lines = ["", f"  gRPC  {'grpcs://' if tls else ''}{settings.grpc_host}:{grpc_port}"]
    if not settings.envoy:
        return "\n".join(lines) + "\n"
    base = f"{'https' if tls else 'http'}://{settings.http_host}:{http_port}"
    curl = " ".join(["curl", *_curl_options(settings)])
    lines += [f"  REST  {base}", "", "  try:", f"    {curl} {base}/v2/models"]
    for task, path, body in _EXAMPLES:
        model = _example(models, task)
        if model is not None and len(lines) < 8:
            data = body if body is not None else _zeros(model)
            lines.append(
                f"    {curl} {base}/models/{model.name}/proxy/v1/{path}"
                f" -H 'Content-Type: application/json' -d {data}"
            )
    return "\n".join(lines) + "\n"


def _curl_options(settings: Settings) -> list[str]:
    """Return what curl needs besides; the words in capitals are for the caller to fill in."""
    options = []
    if settings.tls_certificate is not None:
        options.append("--cacert CA.pem")
    if settings.tls_client_ca is not None:
        options.append("--cert CLIENT.pem --key CLIENT.key")
    if settings.api_keys:
        options.append("-H 'Authorization: Bearer KEY'")
    return options


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
