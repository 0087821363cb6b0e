"""TorchScript files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.runtimes.base import InstanceSpec, ModelError, TensorSpec
from headrace.runtimes.torch import options
from headrace.runtimes.torch.module import TorchModel, last_line


def load(file: Path, instance: InstanceSpec) -> TorchModel:
    """Load a TorchScript file.

    TorchScript knows neither datatypes nor shapes, so options ``inputs`` and ``outputs`` must declare them
    (``options.declared``); names are matched to arguments and results as ``options.positions`` says.
    Option ``dtype`` applies; ``compile`` does not, as TorchScript is compiled already.

    Raises:
        ModelError: the file is no TorchScript, or the declarations are missing or do not fit it.
    """
    device = options.device(instance)
    if options.switch(instance.options, "compile"):
        msg = "option 'compile' does not apply to TorchScript, which is compiled already"
        raise ModelError(msg)
    try:
        with warnings.catch_warnings():
            # Torch advises torch.export, which does nothing for the files that exist.
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Any = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]
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
            f"'{file.name}' is TorchScript, which has no datatypes and shapes: declare input and output in "
            f"config.pbtxt (forward takes {', '.join(arguments) or 'nothing'})"
        )
        raise ModelError(msg)
    places = options.positions([spec.name for spec in inputs], arguments)
    argument_of = {spec.name: arguments[place] for spec, place in zip(inputs, places, strict=True)}
    if absent := [name for name in required if name not in argument_of.values()]:
        msg = f"no input is declared for argument {', '.join(absent)} of forward"
        raise ModelError(msg)

    def call(tensors: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return _named(module(**{argument_of[name]: tensor for name, tensor in tensors.items()}), outputs)

    return TorchModel(call, inputs, outputs, instance, device)


def _named(result: Any, outputs: Sequence[TensorSpec]) -> Mapping[str, torch.Tensor]:
    """Give the results of a call the declared names; a dict of tensors has its own."""
    if isinstance(result, dict):
        named: dict[str, torch.Tensor] = result
        return named
    results = list(result) if isinstance(result, tuple | list) else [result]
    names = [spec.name for spec in outputs]
    places = options.positions(names, [f"result {number}" for number in range(len(results))])
    return {name: results[place] for name, place in zip(names, places, strict=True)}
