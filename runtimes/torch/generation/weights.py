"""Weights of a Hugging Face folder: safetensors, one file or several with an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from headrace.runtimes.base import ModelError
from headrace.runtimes.torch.weight_files import INDEX, SINGLE, weight_files


class Checkpoint:
    """Reads tensors by name; files are mapped, so that only what is taken is read. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Open the checkpoint of ``folder``.

        Raises:
            ModelError: it has none, or one that cannot be read.
        """
        import safetensors

        names = weight_files(folder)
        if not names:
            msg = f"folder '{folder.name}' has no weights: looked for {SINGLE} and {INDEX}"
            raise ModelError(msg)
        self._files: list[Any] = []
        self._where: dict[str, Any] = {}
        for name in names:
            file = safetensors.safe_open(str(folder / name), framework="pt")
            names_in_file: Sequence[str] = file.keys()  # type: ignore[no-untyped-call]
            self._files.append(file)
            self._where.update(dict.fromkeys(names_in_file, file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where.clear()
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return tensor ``name`` in memory of its own, converted to ``dtype``.

        Raises:
            ModelError: there is none, or it has another shape.
        """
        file = self._where.get(name)
        if file is None:
            msg = f"the checkpoint has no '{name}'"
            raise ModelError(msg)
        tensor: torch.Tensor = file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            msg = f"'{name}' has shape {list(tensor.shape)}, config.json says {list(shape)}"
            raise ModelError(msg)
        return tensor.to(dtype, copy=True)

    def dtype(self, name: str) -> torch.dtype:
        """Return what tensor ``name`` is stored as.

        Raises:
            ModelError: there is none.
        """
        file = self._where.get(name)
        if file is None:
            msg = f"the checkpoint has no '{name}'"
            raise ModelError(msg)
        dtype: torch.dtype = file.get_slice(name)[:1].dtype
        return dtype
