"""Programs of ``torch.export`` (``.pt2``)."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch.export.graph_signature import TensorArgument
from torch.export.pt2_archive import PT2ArchiveReader
from torch.utils import _pytree as pytree

from headrace.runtimes.base import InstanceSpec, ModelError, TensorSpec
from headrace.runtimes.torch import options
from headrace.runtimes.torch.module import TorchModel, compiled, last_line, prepare
from headrace.runtimes.torch.tensors import datatype_of

_PLAIN_RECORDS: Final = re.compile(
    r"\.data/.*|byteorder|version|archive_format|archive_version|models/model\.json"
    r"|data/(weights|constants)/model_\w+_config\.json|data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*"
)
_CONFIGS: Final = re.compile(r"data/(weights|constants)/model_\w+_config\.json")
_SAMPLES: Final = "data/sample_inputs/model.pt"


def load(file: Path, instance: InstanceSpec) -> TorchModel:
    """Load an exported program.

    Inputs have the names of the arguments of ``forward``; outputs the keys of the dict that it returns, else
    ``OUTPUT__0``, ``OUTPUT__1``, ... Options ``inputs`` and ``outputs`` rename them (``options.positions``);
    option ``compile`` applies. A program is code and as trusted as the folder it lies in; pickled objects and
    native libraries inside the file are refused unless option ``allow_pickle`` is true.

    Raises:
        ModelError: the file is no such program, has pickles, or does not fit the declarations.
    """
    device = options.device(instance)
    if not options.switch(instance.options, "allow_pickle"):
        _refuse_pickles(file)
    try:
        program = torch.export.load(str(file))
    except Exception as error:
        raise _unreadable(file, error) from error
    graph_inputs, graph_outputs = _graph_specs(program)
    inputs = _renamed(graph_inputs, options.declared(instance.options, "inputs"))
    outputs = _renamed(graph_outputs, options.declared(instance.options, "outputs"))
    in_spec = program.call_spec.in_spec
    if in_spec is None:
        msg = f"'{file.name}' does not say how it is called"
        raise ModelError(msg)
    module = compiled(program.module().to(device), instance.options)
    input_names = [spec.name for spec in inputs]
    output_names = [spec.name for spec in outputs]

    def call(tensors: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        arguments, keywords = pytree.tree_unflatten([tensors[name] for name in input_names], in_spec)
        results, _ = pytree.tree_flatten(module(*arguments, **keywords))
        return dict(zip(output_names, results, strict=True))

    return prepare(TorchModel(call, inputs, outputs, instance, device), instance.options)


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"'{file.name}' is not a program of torch.export.save of torch 2.8 or later: {last_line(error)}"
    )


def _refuse_pickles(file: Path) -> None:
    """Raise unless the archive is plain tensors and JSON.

    ``torch.export.load`` itself would unpickle arbitrary objects wherever the archive says so.
    """
    try:
        reader = PT2ArchiveReader(str(file))
        records = reader.get_file_names()
    except (AssertionError, RuntimeError) as error:
        raise _unreadable(file, error) from error
    for record in records:
        if record == _SAMPLES:
            try:
                torch.load(io.BytesIO(reader.read_bytes(record)), weights_only=True)
            except Exception as error:
                raise _has_pickle(file, record) from error
        elif not _PLAIN_RECORDS.fullmatch(record):
            raise _has_pickle(file, record)
        elif _CONFIGS.fullmatch(record):
            config: dict[str, Any] = msgspec.json.decode(reader.read_bytes(record)).get("config", {})
            if any(payload.get("use_pickle") for payload in config.values()):
                raise _has_pickle(file, record)


def _has_pickle(file: Path, record: str) -> ModelError:
    return ModelError(
        f"'{file.name}' has {record}, which is not plain tensors: loading it could run code. "
        "Parameter allow_pickle: true allows it"
    )


def _graph_specs(program: torch.export.ExportedProgram) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Read names, datatypes and shapes from the graph; symbolic dimensions become -1."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    user_inputs = [spec.arg for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    user_outputs = [spec.arg for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    for argument in (*user_inputs, *user_outputs):
        if not isinstance(argument, TensorArgument):
            msg = f"'{argument.name}' of the exported program is no tensor and cannot be served"
            raise ModelError(msg)
    input_names = _argument_names(program, [argument.name for argument in user_inputs])
    output_names = _result_names(program, len(user_outputs))
    return (
        [_spec(name, values[argument.name]) for name, argument in zip(input_names, user_inputs, strict=True)],
        [
            _spec(name, values[argument.name])
            for name, argument in zip(output_names, user_outputs, strict=True)
        ],
    )


def _argument_names(program: torch.export.ExportedProgram, graph_names: list[str]) -> list[str]:
    """Return the inputs' names as ``forward`` spells them; the graph's own are in lower case.

    Arguments that hold several tensors have only the graph's names.
    """
    names = list(inspect.signature(program.module().forward).parameters)
    return names if len(names) == len(graph_names) else graph_names


def _result_names(program: torch.export.ExportedProgram, count: int) -> list[str]:
    spec = program.call_spec.out_spec
    if spec is not None and spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return [f"OUTPUT__{number}" for number in range(count)]


def _spec(name: str, value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name, datatype_of(name, value.dtype), shape)


def _renamed(specs: Sequence[TensorSpec], declared: Sequence[TensorSpec] | None) -> list[TensorSpec]:
    """Give the graph's tensors the declared names, in the graph's order."""
    if declared is None:
        return list(specs)
    places = options.positions([spec.name for spec in declared], [spec.name for spec in specs])
    renamed = list(specs)
    for place, wanted in zip(places, declared, strict=True):
        if wanted.datatype != specs[place].datatype:
            msg = f"'{wanted.name}' is declared as {wanted.datatype}, the program has {specs[place].datatype}"
            raise ModelError(msg)
        renamed[place] = TensorSpec(wanted.name, wanted.datatype, specs[place].shape)
    return renamed
