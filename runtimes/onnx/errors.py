"""ONNX Runtime's exceptions as the errors of the runtime contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from headrace.runtimes.base import InvalidInputError, ModelError
from headrace.runtimes.lfs import pointer

_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE: Final = re.compile(r"/onnxruntime_src/\S+:\d+ (?:[\w:~<>*&, ]+\([^()]*\)(?: const)? )?")
_SHAPES: Final = (
    "Attempting to broadcast an axis",
    "cannot be reshaped",
    "Dimension mismatch",
    "Incompatible dimensions",
)
"""What kernels say when shapes that depend on the inputs do not fit together inside the graph."""
_FOLDER: Final = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+(?=[^\s/:'\"])")


def clean(text: str, folder: Path | None = None) -> str:
    """Trim one of ONNX Runtime's texts: one line, no code, no source file, no folder of this machine."""
    line = " ".join(_PREFIX.sub("", text).split())
    line = _SOURCE.sub("", line)
    if folder is not None:
        line = line.replace(f"{folder}/", "")
    return _FOLDER.sub("", line).strip()


def load_error(error: Exception, file: Path) -> ModelError:
    """Say why ``file`` cannot be loaded."""
    if said := pointer(file):
        return ModelError(said)
    return ModelError(f"ONNX Runtime cannot load '{file.name}': {clean(str(error), file.parent)}")


def run_error(error: Exception) -> ModelError:
    """Say why a run failed: the inputs (``INVALID_ARGUMENT``, or shapes inside the graph), or anything else.

    A fault that leaves the CUDA context unusable ends the process, as every later run would fail too.
    """
    text = clean(str(error))
    if "CUDA failure" in text and "out of memory" not in text:
        raise SystemExit(text) from error
    if isinstance(error, InvalidArgument) or any(part in text for part in _SHAPES):
        return InvalidInputError(text)
    return ModelError(f"ONNX Runtime failed: {text}")
