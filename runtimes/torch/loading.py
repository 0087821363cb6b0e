"""The torch runtime: what kind of model a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from headrace.runtimes.base import InstanceSpec, ModelError, TensorModel

CANDIDATES: Final = ("model.pt2", "model.pt", "config.json")
"""Looked for in this order: a ``torch.export`` program, TorchScript, a Hugging Face folder."""


def load(instance: InstanceSpec) -> TensorModel:
    """Load the torch model of an instance.

    ``instance.path`` is a ``.pt2`` or ``.pt`` file, or a folder with one of ``CANDIDATES``; see ``export``,
    ``script`` and ``huggingface`` for the options of each.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    path = Path(instance.path)
    file = path
    if path.is_dir():
        found = [path / name for name in CANDIDATES if (path / name).is_file()]
        if not found:
            msg = f"folder '{path.name}' has no torch model: looked for {', '.join(CANDIDATES)}"
            raise ModelError(msg)
        file = found[0]
    elif not path.is_file():
        msg = f"'{path.name}' does not exist"
        raise ModelError(msg)
    if file.suffix == ".pt2":
        from headrace.runtimes.torch import export

        return export.load(file, instance)
    if file.name == "config.json":
        from headrace.runtimes.torch import huggingface

        return huggingface.load(file.parent, instance)
    from headrace.runtimes.torch import script

    return script.load(file, instance)
