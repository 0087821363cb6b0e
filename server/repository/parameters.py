"""Headrace's own settings in a model's configuration: ``parameters`` of config.pbtxt, all values strings.

Keys that are not listed here belong to the runtime and are handed to it unread.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import ModelError
from headrace.runtimes.pooling import parts
from headrace.server.errors import LoadFailedError
from headrace.server.repository.labels import parse_label_list
from headrace.server.repository.model import Task

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """The parameters of one configuration; None is "not set". ``docs/repository.md`` explains each.

    Attributes:
        options: what the runtime gets: every key that is not Headrace's.
        warnings: keys that look like misspelt ones of Headrace's.
    """

    task: Task | None = None
    default: bool = False
    dynamic_batching: bool | None = None
    oversize_batch: str | None = None
    intra_op_thread_count: int | None = None
    lone_threads: int | None = None
    pooling: str | None = None
    max_sequence_length: int | None = None
    max_batch_tokens: int | None = None
    max_batch_rows: int | None = None
    fuse_attention: bool | None = None
    share_weights: bool | None = None
    labels: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    normalize: bool | None = None
    multi_label: bool | None = None
    default_prompt: str | None = None
    max_tokens: int | None = None
    max_sequences: int | None = None
    max_queue: int | None = None
    kv_tokens: int | None = None
    block_tokens: int | None = None
    step_tokens: int | None = None
    prefill_tokens: int | None = None
    mixed_runs: bool | None = None
    prefix_cache: bool | None = None
    draft_tokens: int | None = None
    chat_template: str | None = None
    tool_parser: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_parameters(config: ModelConfig, label: str) -> ModelParameters:
    """Read and check the parameters; ``label`` is what messages call the configuration.

    Raises:
        LoadFailedError: with every wrong value, and what was expected.
    """
    values: dict[str, Any] = {}
    options: dict[str, str] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for key, parameter in sorted(config.parameters.items()):
        text = parameter.string_value
        parse = PARSERS.get(key)
        if parse is None:
            options[key] = text
            near = difflib.get_close_matches(key, PARSERS, n=1, cutoff=0.8)
            if near:
                warnings.append(
                    f"{label}: parameters['{key}'] goes to the runtime; did you mean '{near[0]}'?"
                )
            continue
        try:
            values[key] = parse(text.strip())
        except ValueError as error:
            problems.append(f"{label}: parameters['{key}'] is '{text}': {error}")
    if problems:
        raise LoadFailedError("\n".join(problems), model=config.name)
    return ModelParameters(options=options, warnings=tuple(warnings), **values)


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("expected true or false")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"expected a whole number of at least {least}")
        return int(text)

    return parse


def _pooling(text: str) -> str:
    try:
        parts(text)
    except ModelError as error:
        raise ValueError(str(error)) from None
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return parse


def _task(text: str) -> Task:
    try:
        return Task(text)
    except ValueError:
        raise ValueError(f"expected {', '.join(task.value for task in Task)}") from None


PARSERS: Final[Mapping[str, Callable[[str], Any]]] = MappingProxyType(
    {
        "task": _task,
        "default": _boolean,
        "dynamic_batching": _boolean,
        "oversize_batch": _one_of("reject", "split"),
        "intra_op_thread_count": _at_least(0),
        "lone_threads": _at_least(0),
        "pooling": _pooling,
        "max_sequence_length": _at_least(1),
        "max_batch_tokens": _at_least(1),
        "max_batch_rows": _at_least(1),
        "fuse_attention": _boolean,
        "share_weights": _boolean,
        "labels": parse_label_list,
        "feature_names": parse_label_list,
        "normalize": _boolean,
        "multi_label": _boolean,
        "default_prompt": str,
        "max_tokens": _at_least(2),
        "max_sequences": _at_least(1),
        "max_queue": _at_least(0),
        "kv_tokens": _at_least(1),
        "block_tokens": _at_least(1),
        "step_tokens": _at_least(1),
        "prefill_tokens": _at_least(1),
        "mixed_runs": _boolean,
        "prefix_cache": _boolean,
        "draft_tokens": _at_least(0),
        "chat_template": str,
        "tool_parser": str,
    }
)
"""Key → how its text is read; a parser raises ValueError with what it expected."""
