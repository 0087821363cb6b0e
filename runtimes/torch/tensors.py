"""Arrays to and from torch tensors, and the KServe names of torch's dtypes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError

DTYPES: Final = MappingProxyType(
    {
        "BOOL": torch.bool,
        "UINT8": torch.uint8,
        "UINT16": torch.uint16,
        "UINT32": torch.uint32,
        "UINT64": torch.uint64,
        "INT8": torch.int8,
        "INT16": torch.int16,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "FP16": torch.float16,
        "FP32": torch.float32,
        "FP64": torch.float64,
        "BF16": torch.bfloat16,
    }
)
_NAMES: Final = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})
_BF16: Final = np.dtype(ml_dtypes.bfloat16)


def datatype_of(name: str, dtype: torch.dtype) -> str:
    """Return the KServe name of a tensor's dtype.

    Raises:
        ModelError: there is none.
    """
    if dtype not in _NAMES:
        msg = f"'{name}' has dtype {dtype}, which cannot be served; served are {', '.join(DTYPES)}"
        raise ModelError(msg)
    return _NAMES[dtype]


def to_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on ``device``; on the CPU it shares the array's memory where it may.

    Arrays in a small batch view read-only bytes. They are copied, as a model may write into its inputs.
    """
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy()
    if array.dtype == _BF16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(device)


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array, sharing its memory on the CPU; bfloat16 stays bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BF16)
    array: NDArray[Any] = tensor.numpy()
    return array
