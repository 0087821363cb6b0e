"""Operators of our own for ONNX Runtime, the library of ``native/``, and weights as these want them.

Where there is no such library, for want of a compiler when Headrace was installed or of AVX2, graphs are
loaded without them.
"""

from __future__ import annotations

import ctypes
import mmap
from importlib.util import find_spec
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

DOMAIN: Final = "headrace"
"""Of the operators."""

WIDTH: Final = 32
"""Columns of a panel of weights, as in ``native/kernels.h``."""

NO_ACTIVATION: Final = 0
GELU: Final = 1
"""What the operator Linear can do last."""

_LIBRARY: Final = "headrace.runtimes.onnx._operators"


def register(options: ort.SessionOptions) -> bool:
    """Let sessions with ``options`` have the operators; False where these were not built, or do not run."""
    if find_spec("onnx") is None:
        return False  # nothing can be rewritten
    spec = find_spec(_LIBRARY)
    if spec is None or spec.origin is None:
        return False
    try:
        ctypes.CDLL(spec.origin)  # stays until the process ends, whichever session ends before
        options.register_custom_ops_library(spec.origin)
    except Exception:  # noqa: BLE001 - built for another system, or (ONNX Runtime's own) no processor for it
        return False
    return True


def available() -> bool:
    """Whether the operators run here."""
    return register(ort.SessionOptions())


def panels(weights: NDArray[np.float32], *, transposed: bool = False) -> NDArray[np.float32]:
    """Lay out ``weights``, [terms, columns], for the operator: [columns / 32, terms, 32].

    Args:
        weights: the number of columns is a multiple of 32.
        transposed: whether they are [columns, terms].
    """
    terms, columns = weights.shape[::-1] if transposed else weights.shape
    # pages of its own, which go back when the session has copied them
    memory = mmap.mmap(-1, weights.nbytes)
    made = np.frombuffer(memory, np.float32).reshape(columns // WIDTH, terms, WIDTH)
    if transposed:
        made[:] = weights.reshape(-1, WIDTH, terms).swapaxes(1, 2)
    else:
        made[:] = weights.reshape(terms, -1, WIDTH).swapaxes(0, 1)
    return made
