"""The one table of runtimes: name → where its loader lives, imported only when a worker asks for it.

Third parties add runtimes by the entry-point group ``headrace.runtimes``: the entry point's name is the
runtime's name, its object a :data:`headrace.runtimes.base.Loader`. Decoders for the generation engine are
added by the group ``headrace.decoders``, each a :data:`headrace.runtimes.generation.base.DecoderLoader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final, cast

from headrace.runtimes.base import Loader, ModelError
from headrace.runtimes.generation.base import DecoderLoader

RUNTIMES: Final = MappingProxyType(
    {
        "onnx": "headrace.runtimes.onnx.session:load",
        "torch": "headrace.runtimes.torch.loading:load",
    }
)
DECODERS: Final = MappingProxyType(
    {
        "onnx": "headrace.runtimes.onnx.decoder:load",
        "torch": "headrace.runtimes.torch.decoder:load",
    }
)
ENTRY_POINT_GROUP: Final = "headrace.runtimes"
DECODER_ENTRY_POINT_GROUP: Final = "headrace.decoders"


def loader(name: str) -> Loader:
    """Import and return the loader of runtime ``name``.

    Raises:
        ModelError: no runtime has this name, or its library is not installed.
    """
    return cast("Loader", _find(name, RUNTIMES, ENTRY_POINT_GROUP))


def decoder_loader(name: str) -> DecoderLoader:
    """Import and return what loads the decoders of runtime ``name`` for the generation engine.

    Raises:
        ModelError: no runtime that generates has this name, or its library is not installed.
    """
    return cast("DecoderLoader", _find(name, DECODERS, DECODER_ENTRY_POINT_GROUP))


def _find(name: str, table: Mapping[str, str], group: str) -> object:
    target = table.get(name)
    try:
        if target is not None:
            module, _, attribute = target.partition(":")
            return cast("object", getattr(import_module(module), attribute))
        for entry in entry_points(group=group, name=name):
            return cast("object", entry.load())
    except ImportError as error:
        msg = f"runtime '{name}' needs a library that is missing ({error}); pip install 'headrace[{name}]'"
        raise ModelError(msg) from error
    msg = f"unknown runtime '{name}'; expected one of {', '.join(table)}"
    raise ModelError(msg)
