"""The EfficientNet-Lite0 network as a function of its published weights.

Tan and Le, 2019, scaled as TensorFlow's "lite" variant: ReLU6 instead of swish, no squeeze-and-excitation,
and TensorFlow's SAME padding, which is one pixel longer at the bottom and right where a stride is 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.runtimes.convert.tracing import Weights

if TYPE_CHECKING:
    import torch

BATCH_NORM_EPSILON: Final = 1e-3
CLASSES: Final = 1000
IMAGE_SIZE: Final = 224

STAGES: Final = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""Blocks and stride of the first block; kernels, widths and expansions follow from the weights' shapes."""


def logits(weights: Weights, pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised pixels [batch, 3, 224, 224] -> [batch, 1000]."""
    from torch.nn import functional

    x = _convolution(weights, "_conv_stem", "_bn0", pixel_values, size=IMAGE_SIZE, stride=2).clamp(0, 6)
    size, number = -(-IMAGE_SIZE // 2), 0
    for count, first_stride in STAGES:
        for index in range(count):
            stride = first_stride if index == 0 else 1
            x = _block(weights, f"_blocks.{number}", x, size=size, stride=stride)
            size, number = -(-size // stride), number + 1
    x = _convolution(weights, "_conv_head", "_bn1", x, size=size).clamp(0, 6)
    return functional.linear(x.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to add before and after one axis so that the output has ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _block(weights: Weights, name: str, x: torch.Tensor, *, size: int, stride: int) -> torch.Tensor:
    """An inverted bottleneck: widen, filter each channel, narrow; a shortcut where the shapes agree."""
    y = x
    if f"{name}._expand_conv.weight" in weights:
        y = _convolution(weights, f"{name}._expand_conv", f"{name}._bn0", y, size=size).clamp(0, 6)
    y = _convolution(weights, f"{name}._depthwise_conv", f"{name}._bn1", y, size=size, stride=stride).clamp(
        0, 6
    )
    y = _convolution(weights, f"{name}._project_conv", f"{name}._bn2", y, size=-(-size // stride))
    return x + y if stride == 1 and x.shape[1] == y.shape[1] else y


def _convolution(
    weights: Weights, name: str, norm: str, x: torch.Tensor, *, size: int, stride: int = 1
) -> torch.Tensor:
    """A convolution with SAME padding for ``size`` pixels, then batch normalisation.

    It filters each channel alone when the weight has one input channel but ``x`` has more.
    """
    from torch.nn import functional

    weight = weights[f"{name}.weight"]
    before, after = same_padding(size, weight.shape[-1], stride)
    if before != after:
        x = functional.pad(x, (before, after, before, after))
    groups = int(x.shape[1]) // weight.shape[1]
    x = functional.conv2d(x, weight, None, stride, before if before == after else 0, 1, groups)
    mean, variance, scale, shift = (
        weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(x, mean, variance, scale, shift, eps=BATCH_NORM_EPSILON)
