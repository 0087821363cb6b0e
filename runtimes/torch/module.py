"""A torch module as a tensor model: checks, conversion, threads, and the errors of the contract."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec, InvalidInputError, ModelError, Padding, Run, TensorSpec
from headrace.runtimes.datatypes import datatype_of
from headrace.runtimes.torch.options import switch
from headrace.runtimes.torch.tensors import DTYPES, to_array, to_tensor

_WARM_UP_SIZE: Final = 2
"""What varying dimensions are in the warm-up run: 0 and 1 would be compiled as constants."""

_SHAPES: Final = (
    "must match the size of tensor",
    "shapes cannot be multiplied",
    "is invalid for input of size",
)
"""What torch says when shapes that depend on the inputs do not fit together inside the module."""

Call = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""Named tensors in, named tensors out."""


class TorchModel:
    """A :class:`~headrace.runtimes.base.TensorModel` around a torch module.

    Torch cannot be interrupted: a cancelled run ends before the module is called, or is dropped after it.
    Threads are a setting of the whole process, changed when a lone batch wants another number.
    """

    def __init__(
        self,
        call: Call,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        instance: InstanceSpec,
        device: torch.device,
        *,
        check: Callable[[Mapping[str, NDArray[Any]]], None] | None = None,
        padding: Padding = "all",
    ) -> None:
        """Serve ``call``, which computes ``padding`` of texts.

        ``check`` raises InvalidInputError for values that the module must not see.
        """
        self._call = call
        self._padding: Padding = padding
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._device = device
        self._check = check
        self._threads = instance.threads
        self._lone_threads = instance.lone_threads or instance.threads
        torch.set_num_threads(self._threads)
        if torch.get_num_interop_threads() != 1:
            # Torch refuses once its pool has started, which in a worker it has not.
            with contextlib.suppress(RuntimeError):
                torch.set_num_interop_threads(1)

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The module's inputs."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The module's outputs."""
        return self._outputs

    @property
    def padding(self) -> Padding:
        """What is computed for the padding of a batch of texts."""
        return self._padding

    @property
    def platform(self) -> str:
        """Triton's name for models that torch executes."""
        return "pytorch_libtorch"

    def execute(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> dict[str, NDArray[Any]]:
        """Run one batch; on the CPU neither inputs nor outputs are copied where torch can view them.

        Raises:
            InvalidInputError: names, datatypes, shapes or values do not fit the module.
            RunCancelledError: the run was cancelled.
            ModelError: the module failed, or did not return what its specification says.
        """
        self._checked(inputs, outputs)
        threads = self._lone_threads if run.lone else self._threads
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        run.check()
        try:
            with torch.inference_mode():
                results = self._call({name: to_tensor(array, self._device) for name, array in inputs.items()})
                run.check()
                return self._named(results, outputs)
        except (AssertionError, IndexError) as error:
            # A guard of an exported program, or an index outside an embedding table.
            raise InvalidInputError(last_line(error)) from error
        except torch.OutOfMemoryError as error:
            msg = f"out of memory on {self._device}: {last_line(error)}"
            raise ModelError(msg) from error
        except RuntimeError as error:
            text = last_line(error)
            if any(part in text for part in _SHAPES):
                raise InvalidInputError(text) from error
            if self._device.type == "cuda" and "CUDA error" in text:
                # After such a fault every call on the device fails: only a new process helps.
                raise SystemExit(text) from error
            msg = f"torch failed: {text}"
            raise ModelError(msg) from error

    def close(self) -> None:
        """Drop the module."""
        del self._call

    def _checked(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> None:
        by_name = {spec.name: spec for spec in self._inputs}
        for name in by_name:
            if name not in inputs:
                msg = f"missing input '{name}'; the model expects {', '.join(by_name)}"
                raise InvalidInputError(msg)
        for name, array in inputs.items():
            if name not in by_name:
                msg = f"unknown input '{name}'; the model expects {', '.join(by_name)}"
                raise InvalidInputError(msg)
            spec, actual = by_name[name], datatype_of(array)
            if actual != spec.datatype:
                msg = f"input '{name}' is {actual}, the model expects {spec.datatype}"
                raise InvalidInputError(msg)
            fits = len(spec.shape) == array.ndim and all(
                wanted in (-1, size) for wanted, size in zip(spec.shape, array.shape, strict=True)
            )
            if not fits:
                msg = f"input '{name}' has shape {list(array.shape)}, the model expects {list(spec.shape)}"
                raise InvalidInputError(msg)
        names = {spec.name for spec in self._outputs}
        for name in outputs:
            if name not in names:
                msg = f"unknown output '{name}'; the model has {', '.join(sorted(names))}"
                raise InvalidInputError(msg)
        if self._check is not None:
            self._check(inputs)

    def _named(self, results: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for spec in self._outputs:
            if outputs and spec.name not in outputs:
                continue
            tensor = results.get(spec.name)
            if not isinstance(tensor, torch.Tensor):
                msg = f"the module returned no tensor '{spec.name}', but {', '.join(results) or 'nothing'}"
                raise ModelError(msg)
            if tensor.dtype != DTYPES[spec.datatype]:
                msg = f"output '{spec.name}' is {tensor.dtype}, but is declared as {spec.datatype}"
                raise ModelError(msg)
            arrays[spec.name] = to_array(tensor)
        return arrays


def prepare(model: TorchModel, options: Mapping[str, str]) -> TorchModel:
    """Warm a compiled model up, so that its first batch does not wait for the compiler.

    Raises:
        ModelError: option ``compile`` is on and the module cannot be compiled.
    """
    if switch(options, "compile"):
        inputs = {
            spec.name: np.zeros(
                [_WARM_UP_SIZE if size < 0 else size for size in spec.shape],
                to_array(torch.empty(0, dtype=DTYPES[spec.datatype])).dtype,
            )
            for spec in model.inputs
        }
        try:
            model.execute(inputs, (), Run())
        except ModelError as error:
            msg = f"torch.compile failed (option 'compile'): {error}"
            raise ModelError(msg) from error
    return model


def compiled(module: Any, options: Mapping[str, str]) -> Any:
    """Return ``torch.compile(module)`` when option ``compile`` is on, else the module."""
    return torch.compile(module, dynamic=True) if switch(options, "compile") else module


def last_line(error: BaseException) -> str:
    """Return the line of torch's text that says what happened; the lines before it are code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith("RuntimeError: "):
            return line.removeprefix("RuntimeError: ")
    return lines[0] if lines else type(error).__name__
