"""Says everything about the models of a repository, and loads each once to see that it works."""

from __future__ import annotations

import asyncio
import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.server.errors import HeadraceError
from headrace.server.repository.config import print_config
from headrace.server.repository.definition import ModelDefinition, ModelFactory
from headrace.server.repository.generation_report import describe_generation
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import CONFIG_FILE, holds_model, model_names, open_model
from headrace.server.repository.model import Model, ModelTensor
from headrace.server.repository.preparation import prepare
from headrace.server.repository.signature import shape_text

_MOST_FILES: Final = 30


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What there is to say about one model.

    Attributes:
        name: of the model's folder.
        ok: every version that would be served can be served.
        text: for people; several lines.
    """

    name: str
    ok: bool
    text: str


async def check(path: Path, factory: ModelFactory, machine: Machine) -> list[CheckResult]:
    """Read, load and unload every model, one after another.

    Args:
        path: a repository, or the folder of one model.
        factory: starts and stops models.
        machine: what the printed configurations are planned for.

    Returns:
        One result for each model folder, in order of name; a single one that is not ok when there is none.
    """
    root, names = await asyncio.to_thread(_locate, path)
    if not names:
        return [CheckResult(path.name, ok=False, text=f"{path}: there is no model folder here")]
    return [await _check_model(name, root, factory, machine) for name in names]


def _locate(path: Path) -> tuple[Path, list[str]]:
    """Return the repository and the names of its models; blocking."""
    path = path.resolve()
    if not path.is_dir():
        return path, []
    return (path.parent, [path.name]) if holds_model(path) else (path, model_names([path]))


async def _check_model(name: str, root: Path, factory: ModelFactory, machine: Machine) -> CheckResult:
    lines: list[str] = []
    problems: list[str] = []
    try:
        definitions = await asyncio.to_thread(_read, name, root, machine, lines)
        for definition in definitions:
            lines += await _check_version(definition, factory, problems)
    except Exception as error:  # noqa: BLE001 - the other models are to be checked as well
        problems.append(_reason(error))
    body = [*lines, *(f"problem: {problem}" for problem in problems)]
    verdict = "cannot be served" if problems else "ok"
    text = "\n".join([f"{name}: {verdict}", *(textwrap.indent(line.rstrip(), "  ") for line in body)])
    return CheckResult(name, not problems, text)


def _read(name: str, root: Path, machine: Machine, lines: list[str]) -> tuple[ModelDefinition, ...]:
    """Read a model and describe its files; blocking."""
    folder = open_model(name, [root])
    files = sorted(file for file in folder.path.rglob("*") if file.is_file())
    shown = [f"{file.relative_to(folder.path)} ({_size(file.stat().st_size)})" for file in files]
    more = [f"and {len(shown) - _MOST_FILES} more"] if len(shown) > _MOST_FILES else []
    lines.append(f"files: {', '.join([*shown[:_MOST_FILES], *more])}")
    if not folder.config_file.exists():
        lines.append(f"there is no {CONFIG_FILE}; everything is taken from the files")
    definitions = prepare(folder, machine)
    left_out = sorted(set(folder.versions) - {definition.version for definition in definitions})
    if left_out:
        lines.append(f"versions that version_policy leaves out: {', '.join(map(str, left_out))}")
    lines += [f"warning: {warning}" for warning in definitions[0].warnings]
    return definitions


async def _check_version(
    definition: ModelDefinition, factory: ModelFactory, problems: list[str]
) -> list[str]:
    """Start one instance of a version, describe it and end it."""
    spec = definition.specs[0]
    lines = [f"version {definition.version}: task {definition.task}, runtime {spec.runtime}"]
    failures: list[str] = []
    try:
        one = dataclasses.replace(definition, specs=(spec,))
        model = await factory.build(one, lambda _, reason: failures.append(reason))
    except Exception as error:  # noqa: BLE001 - the other versions are to be checked as well
        problems.append(f"version {definition.version}: {_reason(error)}")
        return lines
    try:
        lines += _describe(definition, model)
    finally:
        await factory.dispose(model)
    problems += [f"version {definition.version}: {reason}" for reason in failures]
    return lines


def _reason(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return error.message
    return f"unexpected error: {type(error).__name__}: {error}"


def _describe(definition: ModelDefinition, model: Model) -> list[str]:
    lines = [
        f"platform {model.platform}, "
        + (f"batches of up to {model.max_batch_size}" if model.batching else "no batching"),
        f"inputs: {_tensors(model.inputs, batching=model.batching)}",
        f"outputs: {_tensors(model.outputs, batching=model.batching)}",
        "instances: "
        + ", ".join(
            f"{spec.device} with {spec.threads} thread(s)"
            + (f" or, alone, {spec.lone_threads}" if spec.lone_threads else "")
            for spec in definition.specs
        ),
    ]
    text = definition.text_model
    if text is not None:
        lines.append(
            f"texts of up to {text.settings.max_tokens} tokens"
            + (f", pooling {text.spec.pooling}" if text.spec.head == "embed" else "")
            + (f", labels {', '.join(text.settings.labels)}" if text.settings.labels else "")
            + (f", prompts {', '.join(text.settings.prompts)}" if text.settings.prompts else "")
        )
    generation = definition.generation_model
    if generation is not None:
        lines += describe_generation(generation)
    return [*lines, "completed configuration:", textwrap.indent(print_config(model.config), "  ")]


def _tensors(tensors: Sequence[ModelTensor], *, batching: bool) -> str:
    return ", ".join(
        f"{tensor.name} {tensor.datatype} {shape_text((-1, *tensor.dims) if batching else tensor.dims)}"
        for tensor in tensors
    )


def _size(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size} {unit}"
        size //= 1024
    return f"{size} GiB"
