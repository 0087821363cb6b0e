"""Writes config.pbtxt, the text form of Triton's ``ModelConfig`` message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tensor:
    """One input or output: Triton's data type without ``TYPE_`` and the shape without the batch dimension."""

    name: str
    data_type: str
    dims: Sequence[int]
    label_filename: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """The part of Triton's model configuration that the demo models use.

    ``max_batch_size`` 0 means that the tensors carry no batch dimension. ``parameters`` are Headrace's own
    settings (``task``, ``pooling``, …); all values are strings.
    """

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    max_batch_size: int = 0
    backend: str = "onnxruntime"
    parameters: Mapping[str, str] = field(default_factory=dict)
    dynamic_batching: bool = False
    all_versions: bool = False


def quoted(text: str) -> str:
    """A string literal of protobuf's text format; only quotes, backslashes and newlines are escaped."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _tensor(kind: str, tensor: Tensor) -> list[str]:
    lines = [
        f"  name: {quoted(tensor.name)}",
        f"  data_type: TYPE_{tensor.data_type}",
        f"  dims: [ {', '.join(map(str, tensor.dims))} ]",
    ]
    if tensor.label_filename:
        lines.append(f"  label_filename: {quoted(tensor.label_filename)}")
    return [f"{kind} {{", *lines, "}"]


def render(config: ModelConfig) -> str:
    """The file's text, fields in the order people write them by hand."""
    lines = [
        f"name: {quoted(config.name)}",
        f"backend: {quoted(config.backend)}",
        f"max_batch_size: {config.max_batch_size}",
    ]
    for tensor in config.inputs:
        lines += _tensor("input", tensor)
    for tensor in config.outputs:
        lines += _tensor("output", tensor)
    if config.dynamic_batching:
        lines.append("dynamic_batching { }")
    if config.all_versions:
        lines.append("version_policy { all { } }")
    for key, value in config.parameters.items():
        lines.append(f"parameters {{ key: {quoted(key)} value: {{ string_value: {quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def write(folder: Path, config: ModelConfig) -> None:
    """Write ``folder``/config.pbtxt, making the folder when it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(render(config), encoding="utf-8")
