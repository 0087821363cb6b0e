"""ONNX Runtime's type strings and the KServe datatypes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Protocol

from headrace.runtimes.base import ModelError, TensorSpec

DATATYPES: Final = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(bfloat16)": "BF16",
        "tensor(string)": "BYTES",
    }
)


class _NodeArg(Protocol):
    """What ONNX Runtime says about one graph input or output."""

    name: str
    type: str
    shape: list[int | str | None]


def tensor_spec(node: _NodeArg) -> TensorSpec:
    """Translate one graph input or output; named and unknown dimensions become -1.

    Raises:
        ModelError: it is no tensor, or a tensor of a type that the protocol has no name for.
    """
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        msg = f"'{node.name}' has type {node.type}, which cannot be served"
        if node.type.startswith(("seq(", "map(")):
            msg += (
                "; export the model with tensor outputs (for scikit-learn classifiers: "
                "skl2onnx convert_sklearn(..., options={'zipmap': False}))"
            )
        else:
            msg += f"; served types are {', '.join(DATATYPES)}"
        raise ModelError(msg)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
