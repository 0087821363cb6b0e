"""Opens converted models in ONNX Runtime, to check what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_session(path: Path, *, threads: int = 0) -> Any:
    """A session on the CPU; ``threads`` 0 means one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
