"""Which loaded model a request means. Texts of errors are Triton's, whose clients match on them."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.server.errors import (
    InvalidArgumentError,
    ModelNotFoundError,
    ModelNotReadyError,
    TaskNotSupportedError,
)
from headrace.server.repository.lifecycle import Entry
from headrace.server.repository.model import Model, Task
from headrace.server.repository.names import parse_version

DEFAULT_NAMES = frozenset({"", "-", "tgi"})
"""Model names that mean the default model, on wires with one field for it."""


def find(entries: Mapping[str, Entry], name: str, version: str) -> Model:
    """Return the version that a request names; the newest ready one when it names none.

    Raises:
        InvalidArgumentError: the version is no positive integer.
        ModelNotFoundError: no such model or version, or none of it is available.
        ModelNotReadyError: the version is there but is not ready.
    """
    number = parse_version(version)
    entry = entries.get(name)
    prefix = f"Request for unknown model: '{name}'"
    if entry is None:
        raise ModelNotFoundError(f"{prefix} is not found", model=name)
    if number is None:
        model = entry.newest
        if model is not None:
            return model
        if not entry.loading:
            raise ModelNotFoundError(f"{prefix} has no available versions", model=name)
        number = max(entry.versions, default=0)
        shown = f" version {number}" if number else ""
        raise ModelNotReadyError(f"{prefix}{shown} is not at ready state", model=name)
    status = entry.versions.get(number)
    if status is None:
        raise ModelNotFoundError(f"{prefix} version {number} is not found", model=name, version=version)
    if status.model is None:
        raise ModelNotReadyError(
            f"{prefix} version {number} is not at ready state", model=name, version=version
        )
    return status.model


def resolve(entries: Mapping[str, Entry], name: str, tasks: tuple[Task, ...]) -> Model:
    """Return the model that a wire with one field means: "" and its like, ``name`` or ``name@version``.

    Raises:
        ModelNotFoundError: there is none.
        ModelNotReadyError: it is there but is not ready.
        TaskNotSupportedError: it does none of ``tasks`` (any will do when there are none).
    """
    if name in DEFAULT_NAMES:
        return _default(entries, tasks)
    base, at, version = name.rpartition("@")
    if at and name not in entries and base in entries and version.isdecimal():
        model = find(entries, base, version)
    else:
        model = find(entries, name, "")
    if tasks and model.task not in tasks:
        raise TaskNotSupportedError(
            f"model '{model.name}' is for task {model.task}, this request needs {_either(tasks)}",
            model=model.name,
            task=model.task.value,
        )
    return model


def statistics(entries: Mapping[str, Entry], name: str, version: str) -> list[Model]:
    """Return the ready models that a statistics request means: all, all versions of one, or one.

    Raises:
        InvalidArgumentError: there is no such model or version, or the version is no positive integer.
    """
    if not name:
        return ready(entries)
    number = parse_version(version)
    entry = entries.get(name)
    models = [model for model in ready(entries) if entry is not None and model.name == name]
    if not models:
        raise InvalidArgumentError(f"requested model '{name}' is not available", model=name)
    if number is None:
        return models
    chosen = [model for model in models if model.version == number]
    if not chosen:
        raise InvalidArgumentError(
            f"requested model version is not available for model '{name}'", model=name, version=version
        )
    return chosen


def ready(entries: Mapping[str, Entry]) -> list[Model]:
    """Return all ready models by name, then version."""
    return [
        status.model
        for name in sorted(entries)
        for status in entries[name].versions.values()
        if status.model is not None
    ]


def _default(entries: Mapping[str, Entry], tasks: tuple[Task, ...]) -> Model:
    """Return the default of the first task that has one; entries are in the order of the configuration."""
    newest = [model for entry in entries.values() if (model := entry.newest) is not None]
    groups = [[model for model in newest if model.task is task] for task in tasks] if tasks else [newest]
    for group in groups:
        # Of models that nobody marked, one that takes texts: image classifiers have no use on these wires.
        best = min(group, key=lambda model: (not model.default, model.text is None), default=None)
        if best is not None:
            return best
    wanted = _either(tasks) if tasks else "anything"
    if any(entry.loading for entry in entries.values()):
        raise ModelNotReadyError(f"no model for {wanted} is at ready state yet: models are loading")
    raise ModelNotFoundError(f"Request for unknown model: no model for {wanted} is loaded, name one")


def _either(tasks: tuple[Task, ...]) -> str:
    return " or ".join(task.value for task in tasks)
