"""Runs and exports torch functions; torch is imported when the first one is."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx

if TYPE_CHECKING:
    import torch

OPSET: Final = 17

Weights = Mapping[str, "torch.Tensor"]
Function = Callable[..., "torch.Tensor"]
Arrays = Mapping[str, npt.NDArray[Any]]


def load_weights(data: bytes) -> Any:
    """What ``torch.save`` wrote: tensors and plain values only, the pickle's code is never run."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def run(function: Function, part: Weights | torch.nn.Module, inputs: Arrays) -> npt.NDArray[Any]:
    """``function(part, *inputs)`` without gradients."""
    import torch

    with torch.inference_mode():
        result: npt.NDArray[Any] = function(
            part, *(torch.from_numpy(value) for value in inputs.values())
        ).numpy()
    return result


def export(
    function: Function,
    part: Weights | torch.nn.Module,
    path: Path,
    *,
    inputs: Arrays,
    output: str,
    dynamic: Mapping[str, Sequence[str]],
) -> None:
    """Write ``function(part, *inputs)`` as an ONNX file and check it.

    ``inputs`` are example arrays by name, ``dynamic`` gives for every tensor the names of its leading axes
    whose size may vary.
    """
    import torch

    class Traced(torch.nn.Module):
        """The function as a module, so that the exporter finds the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.part = (
                part
                if isinstance(part, torch.nn.Module)
                else torch.nn.ParameterDict(
                    {
                        name.replace(".", "/"): torch.nn.Parameter(value, requires_grad=False)
                        for name, value in part.items()
                    }
                )
            )

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            if isinstance(self.part, torch.nn.ParameterDict):
                return function({name.replace("/", "."): value for name, value in self.part.items()}, *values)
            return function(self.part, *values)

    with warnings.catch_warnings():
        # The TorchScript exporter is on its way out, but only its graphs are fused fully by ONNX Runtime.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Traced().eval(),
            tuple(torch.from_numpy(np.asarray(value)) for value in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: dict(enumerate(axes)) for name, axes in dynamic.items()},
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.checker.check_model(onnx.load(path), full_check=True)
