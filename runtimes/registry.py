"""The one table of runtimes: name → where its loader lives, imported only when a worker asks for it.

Third parties add runtimes by the entry-point group ``headrace.runtimes``: the entry point's name is the
runtime's name, its object a :data:`headrace.runtimes.base.Loader`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final, cast

from headrace.runtimes.base import Loader, ModelError

RUNTIMES: Final = MappingProxyType(
    {
        "onnx": "headrace.runtimes.onnx.session:load",
        "torch": "headrace.runtimes.torch.loading:load",
    }
)
ENTRY_POINT_GROUP: Final = "headrace.runtimes"


def loader(name: str) -> Loader:
    """Import and return the loader of runtime ``name``.

    Raises:
        ModelError: no runtime has this name, or its library is not installed.
    """
    target = RUNTIMES.get(name)
    try:
        if target is not None:
            module, _, attribute = target.partition(":")
            return cast("Loader", getattr(import_module(module), attribute))
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return cast("Loader", entry.load())
    except ImportError as error:
        msg = f"runtime '{name}' needs a library that is missing ({error}); pip install 'headrace[{name}]'"
        raise ModelError(msg) from error
    msg = f"unknown runtime '{name}'; expected one of {', '.join(RUNTIMES)}"
    raise ModelError(msg)
