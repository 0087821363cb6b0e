"""The EfficientNet-Lite0 network in torch, with the parameter names of the published weights.

Tan and Le, 2019, scaled as TensorFlow's "lite" variant: ReLU6 instead of swish, no squeeze-and-excitation,
and TensorFlow's SAME padding, which is one pixel longer at the bottom and right where a stride is 2.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

BATCH_NORM_EPSILON: Final = 1e-3
STEM: Final = 32
HEAD: Final = 1280
CLASSES: Final = 1000
IMAGE_SIZE: Final = 224

STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel size, stride of the first block, expansion, output channels."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to add before and after one axis so that the output has ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME does for a square image of ``size`` pixels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        """Fix the padding from the image size; what is the same on all sides is left to the convolution."""
        before, after = same_padding(size, kernel, stride)
        even = before if before == after else 0
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False, padding=even)
        self.uneven = (before, after, before, after) if before != after else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, size, size] -> [batch, outputs, ceil(size / stride), ...]."""
        if self.uneven is not None:
            pixels = nn.functional.pad(pixels, self.uneven)
        return super().forward(pixels)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow; with a shortcut where the shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, size: int
    ) -> None:
        """A block for an image of ``size`` pixels."""
        super().__init__()
        wide = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False) if expansion > 1 else None
        self._bn0 = _norm(wide) if expansion > 1 else None
        self._depthwise_conv = SameConv(wide, wide, kernel, size=size, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, size, size] -> [batch, outputs, ceil(size / stride), ...]."""
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """Pixels, normalised, [batch, 3, 224, 224] -> logits [batch, 1000]."""

    def __init__(self) -> None:
        """Build the blocks; the weights are random until a state is loaded."""
        super().__init__()
        size = IMAGE_SIZE
        self._conv_stem = SameConv(3, STEM, 3, size=size, stride=2)
        self._bn0 = _norm(STEM)
        size, channels, blocks = -(-size // 2), STEM, []
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(
                    Block(channels, outputs, kernel=kernel, stride=step, expansion=expansion, size=size)
                )
                size, channels = -(-size // step), outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits
