"""Dense layers behind the pooling of a sentence encoder, computed in numpy.

They are a vanishing part of the encoder's work, so both runtimes share this one form of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import DenseLayer, ModelError

MAX_HEADER: Final = 1 << 20
_TYPES: Final = MappingProxyType({"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"})


class Dense(NamedTuple):
    """One layer: ``activation(vectors @ weight.T + bias)``; weight is float32 [out, in], bias [out]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map [rows, in] to [rows, out]."""
        # Not matmul, which would wake the BLAS library's own threads beside those of the runtime.
        made: NDArray[np.float32] = np.einsum("ri,oi->ro", vectors, self.weight)
        return self.activation(made if self.bias is None else made + self.bias)


def load(layers: Sequence[DenseLayer], width: int) -> tuple[Dense, ...]:
    """Load the layers, the first of which takes vectors of ``width`` values; -1 is an unknown width.

    Raises:
        ModelError: a file is no safetensors file, has not the weights of a linear layer, or they do not fit.
    """
    loaded: list[Dense] = []
    for layer in layers:
        path = Path(layer.path)
        tensors = _read(path)
        weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
        if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ModelError(
                f"'{_name(path)}' has no linear.weight [out, in], or a linear.bias of another width"
            )
        if width > 0 and weight.shape[1] != width:
            raise ModelError(f"'{_name(path)}' takes vectors of {weight.shape[1]} values, but gets {width}")
        if layer.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ModelError(f"'{_name(path)}': unknown activation '{layer.activation}'; expected {known}")
        loaded.append(Dense(weight, bias, ACTIVATIONS[layer.activation]))
        width = weight.shape[0]
    return tuple(loaded)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a safetensors file: the length of a JSON header (8 bytes), the header, the tensors."""
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + size]) if size <= MAX_HEADER else {}
        body = data[8 + size :]
        return {name: _tensor(entry, body) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{_name(path)}' is not a safetensors file of floats: {error}") from error


def _tensor(entry: dict[str, Any], body: bytes) -> NDArray[np.float32]:
    start, stop = entry["data_offsets"]
    values: NDArray[Any] = np.frombuffer(body[start:stop], _TYPES[entry["dtype"]])
    if entry["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(entry["shape"])


def _identity(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values


def _relu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = np.maximum(values, 0)
    return made


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = (0.5 * (1 + np.tanh(0.5 * values))).astype(np.float32)
    return made


def _gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    erf = np.array([math.erf(value) for value in (values / math.sqrt(2)).ravel().tolist()])
    made: NDArray[np.float32] = (values * 0.5 * (1 + erf.reshape(values.shape))).astype(np.float32)
    return made


ACTIVATIONS: Final[Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]] = MappingProxyType(
    {"Identity": _identity, "Tanh": np.tanh, "ReLU": _relu, "Sigmoid": _sigmoid, "GELU": _gelu}
)
"""By the names of torch's modules."""
