"""Checks of a configuration by itself; what needs the model's file is checked in ``comparison``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final, NamedTuple

from headrace.kserve.v2.data_type_pb2 import TYPE_INVALID
from headrace.kserve.v2.model_config_pb2 import ModelConfig, ModelInput, ModelInstanceGroup, ModelOutput
from headrace.server.errors import LoadFailedError
from headrace.server.repository.names import is_inside

UNSUPPORTED: Final = (
    "sequence_batching",
    "ensemble_scheduling",
    "batch_input",
    "batch_output",
    "cc_model_filenames",
    "model_operations",
    "model_repository_agents",
)
"""Fields that would change what a model answers, and that this server has no answer to."""

MAX_PRIORITY_LEVELS: Final = 1024
"""Levels of a queue: all are looked at for every batch."""

WITHOUT_EFFECT: Final = ("model_warmup", "response_cache", "model_metrics", "metric_tags")


class Problem(NamedTuple):
    """What is wrong with one field."""

    field: str
    text: str


def check_config(config: ModelConfig, label: str) -> None:
    """Refuse a configuration that cannot be right; ``label`` is what messages call it.

    Raises:
        LoadFailedError: one line for each problem, with the field.
    """
    problems = [
        *_general(config),
        *_tensors("input", config.input),
        *_tensors("output", config.output),
        *_batching(config),
        *_instances(config),
    ]
    _refuse(config, label, problems)


def check_completed(config: ModelConfig, label: str) -> None:
    """Refuse what only the batch size can tell; ``max_batch_size`` is final.

    Raises:
        LoadFailedError: one line for each problem, with the field.
    """
    _refuse(config, label, list(_preferred(config)))


def check_one_answer(config: ModelConfig, label: str) -> None:
    """Refuse a model that may answer any number of times, where it is none that generates text.

    Raises:
        LoadFailedError: with the field.
    """
    if config.model_transaction_policy.decoupled:
        text = "this server supports decoupled models for task 'generate' only"
        _refuse(config, label, [Problem("model_transaction_policy.decoupled", text)])


def _refuse(config: ModelConfig, label: str, problems: list[Problem]) -> None:
    if problems:
        lines = [f"{label}: {field}: {text}" for field, text in problems]
        raise LoadFailedError("\n".join(lines), model=config.name)


def ineffective(config: ModelConfig, label: str) -> Iterator[str]:
    """Yield a warning for each field that is set and does nothing here."""
    set_fields = {field.name for field, _ in config.ListFields()}
    for name in WITHOUT_EFFECT:
        if name in set_fields:
            yield f"{label}: {name}: has no effect"
    for index, group in enumerate(config.instance_group):
        for field, _ in group.ListFields():
            if field.name in ("rate_limiter", "profile", "passive", "host_policy", "secondary_devices"):
                yield f"{label}: instance_group[{index}].{field.name}: has no effect"


def _general(config: ModelConfig) -> Iterator[Problem]:
    name = config.name
    for field, _ in config.ListFields():
        if field.name in UNSUPPORTED:
            yield Problem(field.name, f"this server does not support it; model '{name}' cannot be served")
    if config.max_batch_size < 0:
        yield Problem("max_batch_size", f"'max_batch_size' must be non-negative value for {name}")
    if config.default_model_filename and not is_inside(config.default_model_filename):
        yield Problem(
            "default_model_filename", f"'{config.default_model_filename}' leads out of the model's folder"
        )
    policy = config.version_policy
    if policy.HasField("specific"):
        if not policy.specific.versions:
            yield Problem("version_policy.specific", f"must name at least one version of {name}")
        for version in policy.specific.versions:
            if version < 1:
                yield Problem(
                    "version_policy.specific.versions", f"a version is an integer > 0, got {version}"
                )


def _tensors(kind: str, tensors: Sequence[ModelInput | ModelOutput]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        field = f"{kind}[{index}]"
        if not tensor.name:
            yield Problem(f"{field}.name", f"model {kind} must specify 'name'")
        else:
            field = f"{kind} '{tensor.name}'"
            if tensor.name in seen:
                yield Problem(field, f"there is more than one {kind} of this name")
            seen.add(tensor.name)
        if tensor.data_type == TYPE_INVALID:
            yield Problem(f"{field}.data_type", f"model {kind} must specify 'data_type'")
        if tensor.is_shape_tensor:
            yield Problem(
                f"{field}.is_shape_tensor", "shape tensors are TensorRT's; this server does not support them"
            )
        if not tensor.dims:
            yield Problem(f"{field}.dims", f"model {kind} must specify 'dims'")
        yield from _dims(f"{field}.dims", tensor.dims)
        if tensor.HasField("reshape"):
            yield from _dims(f"{field}.reshape.shape", tensor.reshape.shape)
            yield from _reshape(field, list(tensor.dims), list(tensor.reshape.shape))
        if isinstance(tensor, ModelOutput) and tensor.label_filename and not is_inside(tensor.label_filename):
            yield Problem(
                f"{field}.label_filename", f"'{tensor.label_filename}' leads out of the model's folder"
            )


def _dims(field: str, dims: Sequence[int]) -> Iterator[Problem]:
    for size in dims:
        if size < 1 and size != -1:
            text = "dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
            yield Problem(field, f"{text}; got {size}")


def _reshape(field: str, dims: list[int], shape: list[int]) -> Iterator[Problem]:
    fixed = prod(size for size in dims if size > 0) == prod(size for size in shape if size > 0)
    if not fixed or dims.count(-1) != shape.count(-1):
        yield Problem(
            f"{field}.reshape", f"{shape} must have as many elements and variable sizes as dims {dims}"
        )


def _batching(config: ModelConfig) -> Iterator[Problem]:
    batching, name = config.dynamic_batching, config.name
    field = "dynamic_batching"
    if config.max_batch_size > 0:  # where it is 0, completion may still raise it
        yield from _preferred(config)
    for size in batching.preferred_batch_size:
        if size < 1:
            yield Problem(
                f"{field}.preferred_batch_size",
                f"dynamic batching preferred size must be positive for {name}",
            )
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        text = f"a queue has at most {MAX_PRIORITY_LEVELS} priority levels, {name} has {levels}: use fewer"
        yield Problem(f"{field}.priority_levels", text)
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield Problem(
            f"{field}.default_priority_level",
            f"default priority level must be in range [1, {levels}] for {name}; "
            f"got {batching.default_priority_level}",
        )
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            text = f"priority levels must be in range [1, {levels}] for {name}; got {level}"
            yield Problem(f"{field}.priority_queue_policy", text)


def _preferred(config: ModelConfig) -> Iterator[Problem]:
    for size in config.dynamic_batching.preferred_batch_size:
        if size > config.max_batch_size:
            yield Problem(
                "dynamic_batching.preferred_batch_size",
                f"dynamic batching preferred size must be <= max batch size for {config.name}; "
                f"{size} is more than {config.max_batch_size}",
            )


def _instances(config: ModelConfig) -> Iterator[Problem]:
    for index, group in enumerate(config.instance_group):
        field = f"instance_group[{index}]"
        if group.count < 0:
            yield Problem(
                f"{field}.count",
                f"instance group of model {config.name} must have count > 0; got {group.count}",
            )
        if group.gpus and group.kind == ModelInstanceGroup.KIND_CPU:
            yield Problem(
                f"{field}.gpus", f"instance group of model {config.name} has kind KIND_CPU and names GPUs"
            )
        for gpu in group.gpus:
            if gpu < 0:
                yield Problem(
                    f"{field}.gpus", f"instance group of model {config.name} names invalid GPU {gpu}"
                )
