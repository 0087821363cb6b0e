"""Which file of a version folder is the ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from headrace.runtimes.base import ModelError

NAMES: Final = (
    "model",
    "model_O1", "model_O2", "model_O3", "model_O4", "model_optimized",
    "model_fp16",
    "model_quantized", "model_int8", "model_uint8",
    "model_qint8_avx512_vnni", "model_qint8_avx512", "model_quint8_avx2", "model_qint8_arm64",
)  # fmt: skip
CANDIDATES: Final = tuple(f"{folder}{name}.onnx" for name in NAMES for folder in ("", "onnx/"))
"""Looked for in this order: first Triton's name, then what exporters of Hugging Face models write, exact
weights before smaller ones."""


def find_model(path: Path) -> Path:
    """Return the model file of ``path``: itself if a file, else one of ``CANDIDATES``, else the only one.

    A folder named ``model.onnx`` holds the model and its external data, as Triton allows.

    Raises:
        ModelError: there is no such file, or several and none has a known name.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        msg = f"'{path.name}' does not exist"
        raise ModelError(msg)
    for name in CANDIDATES:
        candidate = path / name
        if candidate.is_file():
            return candidate
        if candidate.is_dir():
            return find_model(candidate)
    found = [*sorted(path.glob("*.onnx")), *sorted(path.glob("onnx/*.onnx"))]
    if len(found) == 1:
        return found[0]
    present = ", ".join(str(file.relative_to(path)) for file in found)
    msg = (
        f"folder '{path.name}' has no ONNX model: looked for {', '.join(CANDIDATES)} and for a single "
        f"*.onnx file; found {present or 'none'}"
    )
    raise ModelError(msg)
