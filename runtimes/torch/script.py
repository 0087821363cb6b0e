"""TorchScript files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.runtimes.base import InstanceSpec, ModelError, TensorSpec
from headrace.runtimes.torch import options
from headrace.runtimes.torch.module import TorchModel, compiled, last_line, prepare


def load(file: Path, instance: InstanceSpec) -> TorchModel:
    """Load a TorchScript file.

    TorchScript knows neither datatypes nor shapes, so options ``inputs`` and ``outputs`` must declare them
    (``options.declared``); names are matched to arguments and results as ``options.positions`` says.
    Options ``dtype`` and ``compile`` apply.

    Raises:
        ModelError: the file is no TorchScript, or the declarations are missing or do not fit it.
    """
    device = options.device(instance)
    try:
        module: Any = torch.jit.load(str(file), map_location=device)
    except (RuntimeError, ValueError) as error:
        msg = f"'{file.name}' is not a TorchScript file (write it with torch.jit.save): {last_line(error)}"
        raise ModelError(msg) from error
    module.eval()
    if (dtype := options.dtype(instance.options)) is not None:
        module.to(dtype)
    schema = module.forward.schema
    arguments = [argument.name for argument in schema.arguments[1:]]
    required = [argument.name for argument in schema.arguments[1:] if not argument.has_default_value()]
    inputs = options.declared(instance.options, "inputs")
    outputs = options.declared(instance.options, "outputs")
    if not inputs or not outputs:
        msg = (
            f"'{file.name}' does not say its datatypes and shapes, as TorchScript has none: declare input and "
            f"output in config.pbtxt (forward takes {', '.join(arguments) or 'nothing'})"
        )
        raise ModelError(msg)
    given = arguments if len(inputs) > len(required) else required
    places = options.positions([spec.name for spec in inputs], given)
    ordered = [spec.name for _, spec in sorted(zip(places, inputs, strict=True), key=lambda pair: pair[0])]
    called = compiled(module, instance.options)

    def call(tensors: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return _named(called(*(tensors[name] for name in ordered)), outputs)

    return prepare(TorchModel(call, inputs, outputs, instance, device), instance.options)


def _named(result: object, outputs: Sequence[TensorSpec]) -> Mapping[str, torch.Tensor]:
    """Give the results of a call the declared names."""
    if isinstance(result, dict):
        return result
    results = list(result) if isinstance(result, tuple | list) else [result]
    names = [spec.name for spec in outputs]
    places = options.positions(names, ())
    if max(places, default=-1) >= len(results):
        msg = f"the module returned {len(results)} tensors, but {', '.join(names)} are declared"
        raise ModelError(msg)
    return {name: results[place] for name, place in zip(names, places, strict=True)}
