"""Matrix products with weights that never change."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional

_PACKED_ROWS: Final = 32
"""Rows that oneDNN lays a weight out for. Measured on Zen 4 in float32: half the time of a plain weight at 2
to 32 rows, and never slower at other numbers of rows."""


class Linear:
    """``x · weightᵀ + bias`` for ``x`` [rows, in]; on the CPU the weight is laid out for oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take ``weight`` [out, in] and ``bias`` [out]."""
        self._bias = bias
        self._packed = weight.device.type == "cpu" and packs(weight.dtype)
        self._weight: Any = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_ROWS)  # noqa: SLF001
            if self._packed
            else weight
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out]."""
        if self._packed:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
                x, self._weight, self._bias, "none", [], ""
            )
            return result
        return functional.linear(x, self._weight, self._bias)


def packs(dtype: torch.dtype) -> bool:
    """Say whether this build of torch has oneDNN for ``dtype``."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16())


def has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 itself (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def pack_modules(module: torch.nn.Module) -> None:
    """Replace the ``Linear`` modules inside ``module`` by packed ones."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and packs(child.weight.dtype):
                setattr(parent, name, _Packed(child))


class _Packed(torch.nn.Module):
    """A packed ``Linear`` in the place of torch's own.

    ``weight`` has the shape, type and device of the original for code that asks for them, and takes no
    memory; its values are not the weight's.
    """

    def __init__(self, original: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.bias = original.bias
        self.weight = original.weight.new_zeros(1, 1).expand(original.weight.shape)
        bias: torch.Tensor | None = original.bias
        self._linear = Linear(original.weight.detach(), None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x)
